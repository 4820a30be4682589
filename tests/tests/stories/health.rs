//! Workloads are asked whether they are well, and who is not is sent nothing: HTTP, gRPC, TCP and commands, under strict
//! encryption and policies that refuse everybody else.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{Nginx, curl, curl_many, line_server, nginx, url, wait_for_ports},
    resources::{at, authorization, mesh_mtls, vip4},
    within,
};

use crate::words::{answered, refused, settled};

/// A service with a virtual address, its ports and these further lines of its spec.
pub fn checked(name: &str, number: u8, ports: &str, lines: &[&str]) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         vips: [{}]\n  ports: {ports}\n  {}\n",
        vip4(number),
        lines.join("\n  ")
    )
}

/// A pod of this account with nginx on 8080 that serves port `http` of `service`; `/maybe/` fails while a file is there.
pub fn shaky(mesh: &Mesh, node: u8, name: &str, service: &str) -> (Pod, Nginx, PathBuf) {
    let mut pod = mesh.pod(node, name).label("app", service).serves(service, "http", 8080).outside().up();
    let server = nginx(&pod, &[8080]);
    let busy = pod.work().join("busy");
    pod.enrol();
    (pod, server, busy)
}

/// How the control plane says that an endpoint is: its health and why.
pub fn told(mesh: &Mesh, service: &str, workload: &str) -> (String, String) {
    let page = mesh.meshctl(&["health", service, "-o", "json"], "");
    let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    let of = |endpoint: &&serde_json::Value| endpoint["workload"] == format!("default/{workload}");
    let found = page["endpoints"].as_array().into_iter().flatten().find(of);
    let text =
        |field: &str| found.map(|e| e[field].as_str().unwrap_or_default().to_owned()).unwrap_or_default();
    (text("health"), text("reason"))
}

/// Waits until it is said to be so.
#[track_caller]
pub fn becomes(mesh: &Mesh, service: &str, workload: &str, health: &str) {
    within(Duration::from_secs(15), &format!("{workload} is {health}"), || {
        told(mesh, service, workload).0 == health
    });
}

/// The file of a node's commands, which outlives the mesh.
pub fn commands(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("nm-commands-{}-{name}.yaml", std::process::id()));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    path
}

const HTTP: &str = "healthCheck: {http: {path: /maybe/health}, interval: 200ms, timeout: 500ms, \
                    unhealthyThreshold: 3, healthyThreshold: 2}";

#[test]
fn who_answers_500_is_sent_nothing_until_it_is_well_again() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&mesh_mtls("strict"));
    mesh.apply(&checked("shop", 1, "[{name: http, port: 80, protocol: http}]", &[HTTP]));
    // Nobody but the client is let in: not the agent either, if it came as anybody else does.
    let rule = "[{from: [{serviceAccounts: [client]}]}]";
    mesh.apply(&authorization("shop", "shop", "allow", rule));
    let a = shaky(&mesh, 1, "a", "shop");
    let b = shaky(&mesh, 2, "b", "shop");
    let client = mesh.pod(1, "client").account("client").up();
    let stranger = mesh.pod(1, "stranger").up();
    settled(&client, at(vip4(1), 80), &["a", "b"]);
    becomes(&mesh, "shop", "a", "healthy");
    becomes(&mesh, "shop", "b", "healthy");
    assert_ne!(curl(&stranger, &[&url(vip4(1), 80, "/")]).status, 200);
    assert_ne!(curl(&stranger, &[&url(a.0.ip(), 8080, "/")]).status, 200, "a check opens no way for others");
    assert!(a.1.hits("/maybe/health") > 0);

    let begun = Instant::now();
    fs::write(&b.2, "").unwrap();
    let only_a = || curl_many(&client, &url(vip4(1), 80, "/"), 20).iter().all(|reply| reply.name() == "a");
    eventually("b is sent nothing", only_a);
    let took = begun.elapsed();
    println!("out of the balance after {took:?}; three checks a 200 ms apart");
    assert!(took < Duration::from_secs(4), "{took:?}");
    let (health, reason) = told(&mesh, "shop", "b");
    assert_eq!((&*health, &*reason), ("unhealthy", "GET /maybe/health: 503"));
    let shown = mesh.meshctl(&["get", "workloads"], "");
    assert!(shown.contains("unhealthy (shop: GET /maybe/health: 503)"), "{shown}");
    let node = mesh.node(2);
    assert_eq!(node.metrics().count("mesh_health_unhealthy", &[]), 1);
    assert!(
        node.metrics().count("mesh_health_checks_total", &[("kind", "http"), ("outcome", "failed")]) >= 3
    );

    // What is known stays while its agent is away, and over its restart.
    node.kill_agent();
    assert!(only_a(), "the agent is gone");
    node.start_agent();
    node.wait_ready();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert!(only_a(), "a restart is no reason to send to b");
    }
    assert_eq!(told(&mesh, "shop", "b").0, "unhealthy");
    // And while the control plane is.
    mesh.kill_control();
    assert!(only_a());
    fs::remove_file(&b.2).unwrap();
    mesh.start_control();
    settled(&client, at(vip4(1), 80), &["a", "b"]);
    becomes(&mesh, "shop", "b", "healthy");
    // Who is well stays so over a restart, without a moment of doubt.
    node.kill_agent();
    node.start_agent();
    node.wait_ready();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        assert_eq!(told(&mesh, "shop", "b").0, "healthy");
    }
}

#[test]
fn a_service_without_anybody_who_is_well_says_so() {
    let mesh = Mesh::builder().up();
    mesh.apply(&checked("shop", 1, "[{name: http, port: 80, protocol: http}]", &[HTTP]));
    let a = shaky(&mesh, 1, "a", "shop");
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    fs::write(&a.2, "").unwrap();
    becomes(&mesh, "shop", "a", "unhealthy");
    let shown = mesh.meshctl(&["get", "services"], "");
    assert!(
        shown.contains("none of its 1 endpoints is healthy: default/a: GET /maybe/health: 503"),
        "{shown}"
    );
    // Who comes while it is not well is sent nothing before a check has passed.
    mesh.apply(&checked("late", 2, "[{name: http, port: 80, protocol: tcp}]", &[HTTP]));
    let late = mesh.pod(1, "late").serves("late", "http", 8080).up();
    becomes(&mesh, "late", "late", "starting");
    refused(&client, at(vip4(2), 80));
    let _server = nginx(&late, &[8080]);
    settled(&client, at(vip4(2), 80), &["late"]);
    // Nobody asks any more: it counts as well.
    mesh.apply(&checked("shop", 1, "[{name: http, port: 80, protocol: http}]", &[]));
    settled(&client, at(vip4(1), 80), &["a"]);
}

/// Serves grpc.health.v1 of the service `shop.Cart`, which does not serve while a file is there.
const GRPC: &str = r"
import grpc, os, sys
from concurrent import futures
class Health(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method != '/grpc.health.v1.Health/Check':
            return None
        def check(request, context):
            if request != b'\x0a\x09shop.Cart':
                context.abort(grpc.StatusCode.NOT_FOUND, 'no such service')
            return b'\x08\x02' if os.path.exists(sys.argv[1]) else b'\x08\x01'
        return grpc.unary_unary_rpc_method_handler(check)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Health(),))
server.add_insecure_port('[::]:50051')
server.start()
server.wait_for_termination()
";

fn often(probe: &str) -> String {
    format!(
        "healthCheck: {{{probe}, interval: 200ms, timeout: 1s, unhealthyThreshold: 2, healthyThreshold: 1}}"
    )
}

#[test]
fn grpc_and_tcp_are_asked_as_well() {
    let mesh = Mesh::builder().mtls().up();
    mesh.apply(&mesh_mtls("strict"));
    let port = "[{name: tcp, port: 80}]";
    mesh.apply(&checked("calls", 1, port, &[&often("grpc: {service: shop.Cart, port: 50051}")]));
    mesh.apply(&checked("raw", 2, port, &[&often("tcp: {}")]));
    let (mut calls, mut raw) = (
        mesh.pod(1, "calls").serves("calls", "tcp", 7000).outside().up(),
        mesh.pod(1, "raw").serves("raw", "tcp", 7000).up(),
    );
    let away = calls.work().join("away");
    let args = ["-c", GRPC, &away.to_string_lossy()];
    let mut health = calls.start("grpc", "/usr/bin/python3", &args);
    wait_for_ports(&calls, &mut health, &[50051]);
    let _lines = line_server(&calls, 7000);
    calls.enrol();
    let client = mesh.pod(1, "client").up();
    answered(&client, at(vip4(1), 80), &["calls"]);
    fs::write(&away, "").unwrap();
    refused(&client, at(vip4(1), 80));
    assert_eq!(told(&mesh, "calls", "calls").1, "it says NOT_SERVING");
    fs::remove_file(&away).unwrap();
    answered(&client, at(vip4(1), 80), &["calls"]);

    becomes(&mesh, "raw", "raw", "starting");
    let lines = line_server(&raw, 7000);
    answered(&client, at(vip4(2), 80), &["raw"]);
    drop(lines);
    becomes(&mesh, "raw", "raw", "unhealthy");
    let why = told(&mesh, "raw", "raw").1;
    assert!(why.contains("refused"), "{why}");
    raw.leave();
    raw.enrol();
    becomes(&mesh, "raw", "raw", "starting");
}

/// Starts a program of a user who is nobody as the only one in a pod.
fn nobodys(pod: &mut Pod, port: u16) -> Process {
    pod.kill();
    let port_text = port.to_string();
    let args = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-m",
        "http.server",
        &port_text,
    ];
    let mut server = pod.start("http", "/usr/bin/setpriv", &args);
    wait_for_ports(pod, &mut server, &[port]);
    server
}

#[test]
fn a_command_runs_as_the_workload_s_user_beside_it() {
    let place = std::env::temp_dir().join(format!("nm-health-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).unwrap();
    let of = |name: &str| place.join(name);
    let script = format!(
        "id -u > {0}/who; cat /proc/self/cgroup > {0}/cgroup; ip -o addr > {0}/addresses; yes | head -c 200000; test ! -e {0}/ill || \
         {{ echo it is ill >&2; exit 3; }}; test ! -e {0}/slow || sleep 60",
        place.display()
    );
    let file = commands("check", &format!("commands:\n  ready: {{run: [/bin/sh, -c, '{script}']}}\n"));
    let mesh = Mesh::builder().agent_args(&["--commands", &file.to_string_lossy()]).up();
    mesh.apply(&checked("shop", 1, "[{name: http, port: 80}]", &[&often("command: {ref: ready}")]));
    let mut pod = mesh.pod(1, "a").serves("shop", "http", 8080).outside().up();
    let _server = nobodys(&mut pod, 8080);
    pod.enrol();
    becomes(&mesh, "shop", "a", "healthy");
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    // It is run again and again, and begins its files anew.
    let says = |name: &str, want: &str| {
        within(Duration::from_secs(5), &format!("{name} says {want}"), || {
            read(&of(name)).trim().contains(want)
        });
    };
    says("who", "65534");
    says("cgroup", "/pods/a");
    says("addresses", &pod.ip().to_string());
    fs::write(of("ill"), "").unwrap();
    becomes(&mesh, "shop", "a", "unhealthy");
    let why = told(&mesh, "shop", "a").1;
    assert!(why.contains("exit status: 3") && why.contains("it is ill"), "{why}");
    fs::remove_file(of("ill")).unwrap();
    becomes(&mesh, "shop", "a", "healthy");
    fs::write(of("slow"), "").unwrap();
    becomes(&mesh, "shop", "a", "unhealthy");
    let why = told(&mesh, "shop", "a").1;
    assert!(why.contains("within 1s"), "{why}");
    fs::remove_file(of("slow")).unwrap();
    becomes(&mesh, "shop", "a", "healthy");
    // A command that the node does not have is named, with what it has.
    mesh.apply(&checked("shop", 1, "[{name: http, port: 80}]", &[&often("command: {ref: other}")]));
    eventually("it is named", || told(&mesh, "shop", "a").1.contains("has no command other; it has: ready"));
    fs::remove_dir_all(&place).unwrap();
    fs::remove_file(&file).unwrap();
}
