//! What is done for a workload that does not get well: drained, ejected, told of, started again, and let back.

use std::{fs, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    process::{self, Process},
    programs::{Nginx, curl, line_server, nginx, talk, url},
    resources::{at, vip4},
    within,
};
use serde_json::Value;

use crate::health::{becomes, checked, commands, told};
use crate::words::answered;

/// Takes what is POSTed to it and writes it down, a line each; the first is refused.
const HOOK: &str = r"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    seen = 0
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        Handler.seen += 1
        if Handler.seen > 1:
            print(body, file=open(sys.argv[1], 'a'), flush=True)
        self.send_response(204 if Handler.seen > 1 else 503)
        self.send_header('Content-Length', '0')
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', 9999), Handler).serve_forever()
";

/// A pod with a line server on 7000 and nginx on 8080, where it is asked how it is.
fn server(mesh: &Mesh, node: u8, name: &str, services: &[&str]) -> (Pod, Process, Nginx) {
    let pod = services.iter().fold(mesh.pod(node, name), |pod, service| pod.serves(service, "tcp", 7000));
    let mut pod = pod.outside().up();
    let lines = line_server(&pod, 7000);
    let health = nginx(&pod, &[8080]);
    pod.enrol();
    (pod, lines, health)
}

const CHECK: &str = "healthCheck: {http: {path: /maybe/x, port: 8080}, interval: 200ms, unhealthyThreshold: 2, \
                     healthyThreshold: 1}";

fn events(mesh: &Mesh, service: &str) -> Vec<(String, String)> {
    let page = mesh.meshctl(&["health", service, "-o", "json"], "");
    let page: Value = serde_json::from_str(&page).expect("JSON");
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let all = page["recoveries"].as_array().cloned().unwrap_or_default();
    all.iter().map(|event| (text(event, "action"), text(event, "reason"))).collect()
}

#[test]
fn who_does_not_get_well_is_drained_ejected_told_of_and_started_again() {
    let place = std::env::temp_dir().join(format!("nm-recovery-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let (again, told_of) = (place.join("again"), place.join("told"));
    let file = commands(
        "restart",
        &format!("commands:\n  again: {{run: [/bin/sh, -c, 'echo x >> {}']}}\n", again.display()),
    );
    let mesh = Mesh::builder().nodes(2).agent_args(&["--commands", &file.to_string_lossy()]).up();
    let fabric = mesh.fabric();
    let mut hook = process::command(fabric.cgroup(), "/usr/bin/python3");
    hook.args(["-c", HOOK, &told_of.to_string_lossy()]);
    let _hook = Process::start(&fabric.netns, hook, &place.join("hook.log")).unwrap();
    let recovery = "recovery: {readmit: {afterPasses: 3}, steps: [{after: 2, drain: {}}, {after: 4, eject: {}}, \
                    {after: 5, webhook: {url: 'http://127.0.0.1:9999/hook'}}, {after: 6, restart: {ref: again, atMost: 2}}]}";
    let ports = "[{name: tcp, port: 80}]";
    mesh.apply(&checked("shop", 1, ports, &[CHECK, recovery]));
    // Another service of the same workloads, which asks nothing.
    mesh.apply(&checked("side", 2, ports, &[]));
    let _a = server(&mesh, 1, "a", &["shop", "side"]);
    let b = server(&mesh, 2, "b", &["shop", "side"]);
    let client = mesh.pod(1, "client").up();
    answered(&client, at(vip4(1), 80), &["a", "b"]);
    answered(&client, at(vip4(2), 80), &["a", "b"]);
    let open = at(b.0.ip(), 7000);
    let talk = talk(&client, "talk", &[open]);

    let busy = b.0.work().join("busy");
    fs::write(&busy, "").unwrap();
    becomes(&mesh, "shop", "b", "draining");
    // Drained is the workload, with all that it serves.
    answered(&client, at(vip4(2), 80), &["a"]);
    answered(&client, at(vip4(1), 80), &["a"]);
    eventually("what is open to it is reset", || talk.now(open).1);
    let restarts = || fs::read_to_string(&again).unwrap_or_default().lines().count();
    within(Duration::from_secs(20), "it is started again", || restarts() >= 1);
    within(Duration::from_secs(20), "somebody is told, at the second try", || {
        fs::read_to_string(&told_of).unwrap_or_default().contains("\"health\":\"unhealthy\"")
    });
    let node = mesh.node(2);
    let did = |action: &str| {
        node.metrics().count("mesh_recovery_actions_total", &[("action", action), ("outcome", "done")])
    };
    assert_eq!((did("drain"), did("eject"), did("webhook")), (1, 1, 1));
    assert_eq!(told(&mesh, "side", "b"), ("draining".into(), "shop: GET /maybe/x: 503".into()));
    assert_eq!(
        curl(&client, &[&url(b.0.ip(), 8080, "/")]).status,
        200,
        "its own address is not taken from it"
    );

    fs::remove_file(&busy).unwrap();
    becomes(&mesh, "shop", "b", "healthy");
    answered(&client, at(vip4(1), 80), &["a", "b"]);
    answered(&client, at(vip4(2), 80), &["a", "b"]);
    within(Duration::from_secs(20), "and told that it is well", || {
        fs::read_to_string(&told_of).unwrap_or_default().contains("\"health\":\"healthy\"")
    });
    eventually("all of it is shown", || {
        let seen = events(&mesh, "shop");
        ["drain", "eject", "webhook", "restart", "readmit"]
            .iter()
            .all(|action| seen.iter().any(|(did, _)| did == action))
    });
    let (_, reset) = events(&mesh, "shop").into_iter().find(|(action, _)| action == "eject").unwrap();
    assert!(reset.contains("connections were reset"), "{reset}");
    println!("{}", mesh.meshctl(&["health", "shop"], ""));
    fs::remove_dir_all(&place).unwrap();
    fs::remove_file(&file).unwrap();
}

#[test]
fn a_command_that_does_not_help_is_not_run_for_ever() {
    let place = std::env::temp_dir().join(format!("nm-restarts-{}", std::process::id()));
    fs::create_dir_all(&place).unwrap();
    let again = place.join("again");
    let file = commands(
        "help",
        &format!("commands:\n  again: {{run: [/bin/sh, -c, 'echo x >> {}; exit 1']}}\n", again.display()),
    );
    let mesh = Mesh::builder().agent_args(&["--commands", &file.to_string_lossy()]).up();
    let check = "healthCheck: {tcp: {port: 9}, interval: 100ms, unhealthyThreshold: 1, startupGrace: 0s}";
    let recovery = "recovery: {steps: [{after: 2, restart: {ref: again, atMost: 2}}]}";
    mesh.apply(&checked("shop", 1, "[{name: tcp, port: 80}]", &[check, recovery]));
    let _a = server(&mesh, 1, "a", &["shop"]);
    becomes(&mesh, "shop", "a", "unhealthy");
    within(Duration::from_secs(20), "it is given up", || {
        events(&mesh, "shop")
            .iter()
            .any(|(action, why)| action == "restart" && why.contains("as often as it may be"))
    });
    assert_eq!(fs::read_to_string(&again).unwrap().lines().count(), 2);
    let failed = [("action", "restart"), ("outcome", "failed")];
    assert_eq!(mesh.node(1).metrics().count("mesh_recovery_actions_total", &failed), 3);
    fs::remove_dir_all(&place).unwrap();
    fs::remove_file(&file).unwrap();
}
