//! `bench l7`: the proxy against HAProxy and Envoy, in the same run, beside the same client, before the same server.
//!
//! One node; wrk or h2load in the client's network namespace, nginx (or a gRPC server) in another pod. Ours: an enrolled
//! client dials a virtual address and the agent's one worker takes it; the peers are dialled on loopback. All have 100
//! routes, of which the 58th is asked for, retries, limits of requests, ejection for answers, a rate limit that is never
//! reached, least connections, no access log.
//!
//! What counts is what the proxy burns a request: user and system time of its process. Proof: requests that the
//! agent's worker has counted, and that the peer's server has answered.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Result, ensure};
use mesh_tests::{
    Mesh, Pod,
    process::{self, Process},
    programs::wait_for_ports,
    resources::{Service, at, traffic, vip4},
    within,
};

use crate::{
    Options,
    load::{h2load, p99_at, processor_seconds, wrk},
    peers::{Peer, ROUTES},
    report::{Case, Goal, Proof, Report},
    router,
    stats::abba,
};

const GROUP: &str = "l7";
const LEG: &str = "2";
/// nginx: HTTP/1, HTTP/2; the gRPC server.
const SERVERS: [u16; 3] = [8080, 8081, 8082];
/// Rules of an `HTTPRoute`, at most.
const RULES: usize = 16;
/// Where in the table the rule stands that is asked for.
const ASKED: &str = "/r/57";

/// What is spoken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
    Grpc,
}

/// What is measured of a leg.
#[derive(Clone, Copy)]
enum Measure {
    /// Microseconds of processor time of the proxy, a request.
    Cpu,
    /// Microseconds, the 99th percentile at half of what the peer can do.
    Tail,
}

struct Kind {
    spoken: Spoken,
    connections: usize,
    /// Kibibytes of a response.
    size: usize,
    measure: Measure,
    peer: Peer,
    goal: fn() -> Goal,
}

/// The cases: those with a goal first, then the rest of the grid.
fn kinds() -> Vec<Kind> {
    use Peer::{Envoy, HaProxy};
    use Spoken::{Grpc, Http1, Http2};
    let mut all = Vec::new();
    let mut add = |spoken, connections, size, measure, peer, goal: fn() -> Goal| {
        all.push(Kind { spoken, connections, size, measure, peer, goal });
    };
    add(Http1, 64, 0, Measure::Cpu, HaProxy, || Goal::RatioAtMost(0.85));
    add(Http1, 64, 0, Measure::Cpu, Envoy, || Goal::RatioAtMost(0.45));
    add(Http1, 512, 0, Measure::Cpu, HaProxy, || Goal::RatioAtMost(0.8));
    add(Http1, 64, 16, Measure::Cpu, HaProxy, || Goal::RatioAtMost(0.85));
    add(Http1, 64, 0, Measure::Tail, HaProxy, || Goal::RatioAtMost(1.0));
    add(Http2, 64, 0, Measure::Cpu, Envoy, || Goal::RatioAtMost(0.7));
    add(Grpc, 64, 0, Measure::Cpu, Envoy, || Goal::RatioAtMost(0.7));
    for connections in [1, 64, 512] {
        for size in [0, 1, 16, 256] {
            let named = (connections == 64 && matches!(size, 0 | 16)) || (connections == 512 && size == 0);
            if !named {
                add(Http1, connections, size, Measure::Cpu, HaProxy, || Goal::None);
            }
            if (connections, size) != (64, 0) {
                add(Http2, connections, size, Measure::Cpu, Envoy, || Goal::None);
            }
        }
        if connections != 64 {
            add(Grpc, connections, 0, Measure::Cpu, Envoy, || Goal::None);
        }
    }
    all
}

impl Kind {
    fn place(&self) -> String {
        let spoken = match self.spoken {
            Spoken::Http1 => "http1",
            Spoken::Http2 => "http2",
            Spoken::Grpc => "grpc",
        };
        format!("{spoken}, {} connections, {} KiB", self.connections, self.size)
    }

    fn metric(&self) -> &'static str {
        match self.measure {
            Measure::Cpu => "cpu",
            Measure::Tail => "p99",
        }
    }
}

struct Ground {
    mesh: Mesh,
    client: Pod,
    bare: Pod,
    server: Pod,
    _programs: Vec<Process>,
    peers: [(Peer, Process); 2],
}

impl Ground {
    fn new() -> Result<Self> {
        let mesh = Mesh::builder().nodes(1).agent_args(&["--workers", "1"]).up();
        for (name, number) in [("one", 1), ("two", 2), ("grpc", 3)] {
            mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
            mesh.apply(&routes(name));
            mesh.apply(&traffic(
                name,
                &[
                    "balancing: leastConnections",
                    "limits: {maxConnections: 100000, maxRequests: 100000}",
                    "outlierEjection: {consecutive5xx: 5}",
                    "rateLimits: [{requests: 1000000}]",
                ],
            ));
        }
        let [one, two, grpc] = SERVERS;
        let pod = mesh.pod(1, "server").serves("one", "http", one).serves("two", "http", two);
        let mut server = pod.serves("grpc", "http", grpc).outside().up();
        let programs = vec![nginx(&server)?, grpc_server(&server)];
        server.enrol();
        let (client, bare) = (mesh.pod(1, "client").up(), mesh.pod(1, "bare").beside().up());
        fs::write(client.work().join("message"), [0, 0, 0, 0, 2, b'o', b'k'])?;
        fs::write(bare.work().join("message"), [0, 0, 0, 0, 2, b'o', b'k'])?;
        let haproxy = (Peer::HaProxy, Peer::HaProxy.start(&bare, server.ip(), SERVERS)?);
        let envoy = (Peer::Envoy, Peer::Envoy.start(&bare, server.ip(), SERVERS)?);
        for number in [1, 2, 3] {
            let version = if number == 1 { "--http1.1" } else { "--http2-prior-knowledge" };
            let url = format!("http://{}{ASKED}/b0", at(vip4(number), 80));
            within(Duration::from_secs(30), "the services answer", || {
                let answer = client
                    .run("curl", &["-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", version, &url]);
                answer.is_ok_and(|code| code.trim() == "200")
            });
        }
        Ok(Self { mesh, client, bare, server, _programs: programs, peers: [haproxy, envoy] })
    }

    fn peer(&self, peer: Peer) -> &Process {
        let found = self.peers.iter().find(|(one, _)| *one == peer);
        &found.expect("both are there").1
    }

    fn pid(&self, ours: bool, kind: &Kind) -> u32 {
        if ours { self.mesh.node(1).agent_pid() } else { self.peer(kind.peer).pid() }
    }

    fn leg(&self, ours: bool, kind: &Kind, rate: f64) -> Result<f64> {
        let pod = if ours { &self.client } else { &self.bare };
        let (url, connections) = (url(ours, kind), kind.connections.to_string());
        if let Measure::Tail = kind.measure {
            return p99_at(pod, &url, kind.connections, rate, Duration::from_secs(2));
        }
        let before = processor_seconds(self.pid(ours, kind))?;
        let done = match kind.spoken {
            Spoken::Http1 => wrk(pod, &["-t1", "-c", &connections, "-d", &format!("{LEG}s"), &url])?,
            Spoken::Http2 => h2load(pod, &["-t1", "-c", &connections, "-m1", "-D", LEG, &url])?,
            Spoken::Grpc => {
                let message = pod.work().join("message");
                let grpc = [
                    "-d",
                    &message.to_string_lossy(),
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                ]
                .map(ToOwned::to_owned);
                let args = ["-t1", "-c", &connections, "-m1", "-D", LEG];
                let grpc: Vec<&str> = grpc.iter().map(String::as_str).collect();
                h2load(pod, &[&args[..], &grpc, &[&url]].concat())?
            }
        };
        Ok((processor_seconds(self.pid(ours, kind))? - before) * 1e6 / done.requests)
    }

    /// Half of what the peer answers a second when it is asked as often as it can.
    fn half(&self, kind: &Kind) -> Result<f64> {
        let connections = kind.connections.to_string();
        let url = url(false, kind);
        Ok(wrk(&self.bare, &["-t1", "-c", &connections, "-d", &format!("{LEG}s"), &url])?.rate / 2.0)
    }

    fn proof(&self) -> Proof {
        let counted = self.mesh.node(1).metrics().count("mesh_requests_total", &[("status", "200")]);
        let filter = format!("sport = :{} or sport = :{} or sport = :{}", SERVERS[0], SERVERS[1], SERVERS[2]);
        let open = self.server.run("ss", &["-Htn", "state", "established", &filter]).unwrap_or_default();
        Proof::from([
            ("requests_of_the_agent".to_owned(), counted),
            ("connections_of_the_server".to_owned(), open.lines().count() as u64),
        ])
    }
}

/// Where a leg goes.
fn url(ours: bool, kind: &Kind) -> String {
    let to = match (ours, kind.spoken) {
        (true, Spoken::Http1) => at(vip4(1), 80),
        (true, Spoken::Http2) => at(vip4(2), 80),
        (true, Spoken::Grpc) => at(vip4(3), 80),
        (false, Spoken::Http1) => at([127, 0, 0, 1], kind.peer.ports()[0]),
        (false, Spoken::Http2) => at([127, 0, 0, 1], kind.peer.ports()[1]),
        (false, Spoken::Grpc) => at([127, 0, 0, 1], kind.peer.ports()[2]),
    };
    let file = if kind.spoken == Spoken::Grpc { "Echo".to_owned() } else { format!("b{}", kind.size) };
    format!("http://{to}{ASKED}/{file}")
}

/// Files of four sizes, over HTTP/1 and HTTP/2.
fn nginx(pod: &Pod) -> Result<Process> {
    let work = pod.work();
    fs::create_dir_all(work.join("files"))?;
    for size in [0, 1, 16, 256] {
        fs::write(work.join(format!("files/b{size}")), vec![b'x'; size * 1024])?;
    }
    let [one, two, _] = SERVERS;
    let config = format!(
        "daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/error.log;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; sendfile on; open_file_cache max=16; keepalive_requests 100000000;\n\
           http2_max_concurrent_streams 1024; client_body_temp_path {work}/t1; proxy_temp_path {work}/t2;\n\
           fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;\n\
           server {{ listen {one} backlog=4096; listen {two} http2 backlog=4096;\n\
             location {ASKED}/ {{ alias {work}/files/; }} }} }}\n",
        work = work.display(),
    );
    let (path, log) = (work.join("nginx.conf"), work.join("error.log"));
    fs::write(&path, config)?;
    let args = ["-c", &path.to_string_lossy(), "-e", &log.to_string_lossy()];
    let mut process = pod.start("nginx", "/usr/sbin/nginx", &args);
    wait_for_ports(pod, &mut process, &[one, two]);
    Ok(process)
}

fn grpc_server(pod: &Pod) -> Process {
    let mut process = pod.start("mesh-grpc", process::own_program("mesh-grpc"), &[&SERVERS[2].to_string()]);
    wait_for_ports(pod, &mut process, &[SERVERS[2]]);
    process
}

/// [`ROUTES`] rules that all lead to the service itself.
fn routes(service: &str) -> String {
    let mut yaml = String::new();
    for (number, first) in (0..ROUTES).step_by(RULES).enumerate() {
        let _ = write!(
            yaml,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}-{number}}}\nspec:\n\
             \x20 parentRefs: [{{kind: Service, group: '', name: {service}, port: 80}}]\n  rules:\n"
        );
        for rule in first..ROUTES.min(first + RULES) {
            let _ = writeln!(
                yaml,
                "  - matches: [{{path: {{value: /r/{rule}}}}}]\n    retry: {{codes: [503], attempts: 2}}\n    \
                 backendRefs: [{{name: {service}, port: 80}}]"
            );
        }
    }
    yaml
}

/// The cases that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    router::run(options, report);
    let all = kinds();
    let wanted: Vec<&Kind> = all
        .iter()
        .filter(|kind| options.wants(GROUP, &format!("{} {}", kind.place(), kind.peer.name()), kind.metric()))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let ground = Ground::new()?;
    for kind in wanted {
        let rate = if let Measure::Tail = kind.measure { ground.half(kind)? } else { 0.0 };
        let before = ground.proof()["requests_of_the_agent"];
        let pairs = abba(options.rounds, |ours| ground.leg(ours, kind, rate))?;
        let proof = ground.proof();
        ensure!(proof["requests_of_the_agent"] > before, "not through the agent: {proof:?}");
        let place = kind.place();
        let unit = if let Measure::Tail = kind.measure { "us" } else { "us/request" };
        let case = Case { place: &place, metric: kind.metric(), unit, goal: (kind.goal)(), proof: &proof };
        report.pairs(&case, kind.peer.name(), &pairs);
    }
    Ok(())
}
