//! A thousand services of ten endpoints: how long a change takes from the API call to the BPF maps, and what
//! the agent's memory is.
//!
//! The store is on a tmpfs, so that the propagation is without the disk; the fsync's own 99th percentile,
//! from a store on the disk, is a case of its own.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::{Mesh, mesh::CONTROL, metrics::Metrics, pins::Epoch, within};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    Options,
    report::{Case, Goal, Proof, Report},
    stats::percentile,
};

const SERVICES: usize = 1000;
const ENDPOINTS_EACH: usize = 10;
/// meshctl takes a thousand documents a file.
const SERVICES_A_FILE: usize = 80;
const CHANGES: usize = 300;
const WRITERS: usize = 8;
const CHANGE_MAX: Duration = Duration::from_secs(5);

/// Both cases.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    if !options.wants("scale", "", "") {
        return Ok(());
    }
    let memory = MemoryCgroup::new()?;
    let mesh = Mesh::builder().volatile_store().agent_cgroup(memory.path()).up();
    fill(&mesh)?;
    let node = mesh.node(1);
    within(Duration::from_mins(2), "the agent knows every service", || {
        node.metrics().count("mesh_services", &[]) == SERVICES as u64
    });
    let proof = Proof::from([
        ("services".to_owned(), node.metrics().count("mesh_services", &[])),
        ("endpoints".to_owned(), (SERVICES * ENDPOINTS_EACH) as u64),
    ]);
    let _client = mesh.pod(1, "client").up();
    let took = changes(&mesh, CHANGES)?;
    let p99 = percentile(&took, 99.0);
    report.alone(&case("1000 services x 10", "propagation", "ms", Goal::AtMost(10.0), &proof), &took, p99);
    println!("    median {:.2} ms; API call to BPF map, store without a disk", percentile(&took, 50.0));

    let used = memory.used_mb()?;
    report.alone(&case("1000 services x 10", "memory", "MB", Goal::AtMost(30.0), &proof), &[used], used);
    let rss = resident_mb(node.agent_pid())?;
    report.alone(&case("1000 services x 10", "rss", "MB", Goal::None, &proof), &[rss], rss);
    drop(mesh);
    fsync(report)
}

/// The 99th percentile of the store's fsync on this disk.
fn fsync(report: &mut Report) -> Result<()> {
    let mesh = Mesh::builder().up();
    fill_some(&mesh, 0..5)?;
    mesh.apply(&workload(0, 0, 1));
    let took = changes(&mesh, 100)?;
    let mut rest = Rest::start(&mesh)?;
    let metrics = Metrics::parse(&rest.get("/metrics")?);
    let p99 = metrics.sum("mesh_control_fsync_seconds", &[("quantile", "0.99")]) * 1000.0;
    ensure!(p99 > 0.0, "the control plane does not say what its fsync takes");
    let proof = Proof::from([("writes".to_owned(), metrics.count("mesh_control_writes_total", &[]))]);
    report.alone(&case("durable store", "fsync p99", "ms", Goal::None, &proof), &[p99], p99);
    let all = percentile(&took, 99.0);
    report.alone(&case("durable store", "propagation", "ms", Goal::None, &proof), &took, all);
    Ok(())
}

fn case<'a>(place: &'a str, metric: &'a str, unit: &'a str, goal: Goal, proof: &'a Proof) -> Case<'a> {
    Case { place, metric, unit, goal, proof }
}

fn fill(mesh: &Mesh) -> Result<()> {
    let each = SERVICES.div_ceil(WRITERS);
    let begin = Instant::now();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || fill_some(mesh, writer * each..SERVICES.min((writer + 1) * each)))
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    println!(
        "    {SERVICES} services and {} workloads written in {:.1} s",
        SERVICES * ENDPOINTS_EACH,
        begin.elapsed().as_secs_f64()
    );
    Ok(())
}

fn fill_some(mesh: &Mesh, services: std::ops::Range<usize>) -> Result<()> {
    let services: Vec<_> = services.collect();
    services.chunks(SERVICES_A_FILE).try_for_each(|services| fill_file(mesh, services))
}

fn fill_file(mesh: &Mesh, services: &[usize]) -> Result<()> {
    let mut yaml = String::new();
    for &service in services {
        writeln!(
            yaml,
            "---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: s{service}, namespace: default}}\n\
             spec:\n  ports: [{{name: tcp, port: 80, protocol: tcp}}]"
        )?;
        for endpoint in 0..ENDPOINTS_EACH {
            yaml.push_str(&workload(service, endpoint, 1));
        }
    }
    // From a file: a pipe would be the narrowest place.
    let path = mesh.place().work.join(format!("fill-{:?}.yaml", thread::current().id()));
    fs::write(&path, yaml)?;
    mesh.try_meshctl(&["apply", "-f", &path.to_string_lossy()], "")?;
    Ok(())
}

fn workload(service: usize, endpoint: usize, weight: usize) -> String {
    let number = service * ENDPOINTS_EACH + endpoint;
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {{name: w{number}, namespace: default}}\nspec: {}\n",
        workload_spec(service, number, weight)
    )
}

/// JSON is YAML.
fn workload_spec(service: usize, number: usize, weight: usize) -> String {
    format!(
        r#"{{"addresses": ["10.200.{}.{}"], "services": [{{"service": "s{service}", "portName": "tcp", "targetPort": 8080, "weight": {weight}}}]}}"#,
        number / 250,
        number % 250 + 1,
    )
}

/// Changes one endpoint's weight after the other; milliseconds from the call to the map.
fn changes(mesh: &Mesh, count: usize) -> Result<Vec<f64>> {
    let mut rest = Rest::start(mesh)?;
    let epoch = Epoch::open(&mesh.node(1).bpffs())?;
    let mut took = Vec::new();
    for change in 0..count {
        quiet(&epoch)?;
        let before = epoch.get()?;
        let spec = workload_spec(0, 0, 2 + change % 7);
        let body = format!(
            r#"{{"apiVersion": "nodemesh.io/v1", "kind": "Workload", "metadata": {{"name": "w0", "namespace": "default"}}, "spec": {spec}}}"#
        );
        let deadline = Instant::now() + CHANGE_MAX;
        rest.send("PUT", "/v1/workloads/default/w0", &body)?;
        while epoch.get()? == before {
            ensure!(Instant::now() < deadline, "change {change} did not reach the map within {CHANGE_MAX:?}");
            thread::sleep(Duration::from_micros(50));
        }
        let arrived = monotonic_ns();
        let begun = rest.answer()?.0;
        took.push(arrived.saturating_sub(begun) as f64 / 1e6);
    }
    Ok(took)
}

/// Waits until nothing has changed for longer than changes are gathered.
fn quiet(epoch: &Epoch) -> Result<()> {
    let mut last = (epoch.get()?, Instant::now());
    while last.1.elapsed() < Duration::from_millis(40) {
        let now = epoch.get()?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A client of the REST API on a kept connection: python, because the harness speaks no TLS.
struct Rest {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

const CLIENT: &str = r"
import http.client, ssl, sys, time
host, ca, token = sys.argv[1], sys.argv[2], open(sys.argv[3]).read().strip()
connection = http.client.HTTPSConnection(host, 15080, context=ssl.create_default_context(cafile=ca))
connection.connect()
for line in sys.stdin:
    method, path, body = line.rstrip('\n').split(' ', 2)
    headers = {'Authorization': 'Bearer ' + token, 'Content-Type': 'application/json'}
    begun = time.monotonic_ns()
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    print(begun, answer.status, text.replace('\n', '\x1e'), flush=True)
";

impl Rest {
    fn start(mesh: &Mesh) -> Result<Self> {
        let data = mesh.fabric().data();
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", CLIENT, &CONTROL.to_string()])
            .arg(data.join("ca.pem"))
            .arg(data.join("admin.token"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = mesh.fabric().netns.with(|| command.spawn())?;
        let stdin = child.stdin.take().context("python's input")?;
        let stdout = BufReader::new(child.stdout.take().context("python's output")?);
        Ok(Self { child, stdin, stdout })
    }

    fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        Ok(writeln!(self.stdin, "{method} {path} {body}")?)
    }

    /// When the request began, and the body of a 2xx.
    fn answer(&mut self) -> Result<(u64, String)> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let mut words = line.trim_end().splitn(3, ' ');
        let mut word = || words.next().with_context(|| format!("the REST client said {line:?}"));
        let (begun, status, body) = (word()?.parse()?, word()?, words.next().unwrap_or_default());
        if !status.starts_with('2') {
            bail!("the API answered {status}: {body}");
        }
        Ok((begun, body.replace('\x1e', "\n")))
    }

    fn get(&mut self, path: &str) -> Result<String> {
        self.send("GET", path, "")?;
        Ok(self.answer()?.1)
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process, without what it maps of files.
fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kb: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kb / 1024.0)
}

/// A memory cgroup for the agent: BPF maps are charged there too.
struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            (words[2] == "cgroup" && words[3].split(',').any(|word| word == "memory"))
                .then(|| words[1].to_owned())
        });
        let mount = mount.context("no memory controller of cgroup v1 here, and v2's is not built")?;
        let path = Path::new(&mount).join(format!("nm-{}-bench", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// What is charged, less page cache.
    fn used_mb(&self) -> Result<f64> {
        let usage: f64 = fs::read_to_string(self.0.join("memory.usage_in_bytes"))?.trim().parse()?;
        let stat = fs::read_to_string(self.0.join("memory.stat"))?;
        let cache =
            stat.lines().find_map(|line| line.strip_prefix("cache ")).context("no cache in memory.stat")?;
        Ok((usage - cache.parse::<f64>()?) / f64::from(1 << 20))
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Its processes are gone with the mesh, which is dropped first.
        let _ = fs::remove_dir(&self.0);
    }
}
