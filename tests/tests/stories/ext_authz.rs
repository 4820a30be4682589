//! External authorisation: a gRPC server with Envoy's own protocol buffers, a service of the mesh, decides about requests.

use std::path::Path;

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{Reply, curl, url},
    resources::{Service, vip4, vip6},
};
use serde_json::Value;

use crate::jwt::{ECHO, RAW};

const PYTHON: &str = "/usr/bin/python3";
const SERVER: &str = include_str!("ext_authz/server.py");
/// Its protocol buffers, as PyPI has them.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/xds-protos");

/// A pod that decides, behind the service `decider` (number 9).
fn decider(mesh: &Mesh, node: u8) -> (Pod, Process) {
    mesh.apply(&Service::vip("decider", 9).tcp("grpc", 9191).yaml());
    let mut pod =
        mesh.pod(node, "decider").label("app", "decider").serves("decider", "grpc", 9191).outside().up();
    assert!(Path::new(MODULES).exists(), "{MODULES} is missing: cargo xtask test installs it");
    let args = [&format!("PYTHONPATH={MODULES}"), PYTHON, "-c", SERVER, "9191"];
    let server = pod.start("decider", "/usr/bin/env", &args);
    eventually("the decider is ready", || server.log().contains("ready"));
    pod.enrol();
    (pod, server)
}

/// A pod labelled `app: web` that echoes heads at 8080, behind the service `web` (number 1).
fn web(mesh: &Mesh, node: u8) -> (Pod, Process) {
    mesh.apply(&Service::vip("web", 1).http("http", 80).yaml());
    let mut pod =
        mesh.pod(node, "web-0").account("web").label("app", "web").serves("web", "http", 8080).outside().up();
    let server = pod.start("echo", PYTHON, &["-c", ECHO, "8080", "web-0"]);
    eventually("the application is ready", || server.log().contains("ready"));
    pod.enrol();
    (pod, server)
}

/// The mesh, with that provider.
fn provider(mesh: &Mesh, more: &str) {
    mesh.apply(&format!(
        "apiVersion: nodemesh.io/v1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec:\n  extAuthz:\n  \
         - {{name: decider, service: {{name: decider, port: 9191}}{more}}}\n"
    ));
}

/// A policy of every workload of the namespace, the decider among them.
fn policy(mesh: &Mesh, rules: &str) {
    mesh.apply(&format!(
        "apiVersion: nodemesh.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: asked}}\nspec: \
         {{action: custom, provider: decider, rules: {rules}}}\n"
    ));
}

const EVERYTHING_BUT_OPEN: &str = "[{to: [{paths: [/asked, '/asked/*', /login, /late, /error]}]}]";

fn ask(from: &Pod, to: &str, more: &[&str]) -> Reply {
    curl(from, &[&["-i"], more, &[to]].concat())
}

#[track_caller]
fn refused(reply: &Reply, status: u16, reason: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    let head = reply.body.to_ascii_lowercase();
    assert!(head.contains(&format!("x-mesh-reason: {reason}")), "{reason}: {head}");
}

/// The questions that were asked about that path.
fn questions(decider: &Process, path: &str) -> Vec<Value> {
    let log = decider.log();
    let all = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(|question| question["path"] == path).collect()
}

#[test]
fn a_service_of_the_mesh_decides_about_requests() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (web, _echo) = web(&mesh, 1);
    let (_pod, decider) = decider(&mesh, 2);
    let near = mesh.pod(1, "near").account("near").up();
    let far = mesh.pod(2, "far").account("far").up();
    provider(&mesh, "");
    policy(&mesh, EVERYTHING_BUT_OPEN);
    let good = ["-H", "X-Token: good"];
    for (from, name, host) in [
        (&near, "near", url(vip4(1), 80, "")),
        (&far, "far", url(vip6(1), 80, "")),
        (&far, "far", url(web.ip(), 8080, "")),
    ] {
        let at = |path: &str| format!("{host}{path}");
        eventually("without a token it is refused", || ask(from, &at("/asked"), &[]).status == 401);
        let reply = ask(from, &at("/asked?a=b"), &[]);
        refused(&reply, 401, "ext_authz_denied");
        let head = reply.body.to_ascii_lowercase();
        assert!(head.contains("www-authenticate: token") && head.contains("show a token"), "{head}");

        let own = ["X-User: root", "X_User: root", "X-Seen: me"].map(|header| ["-H", header]).concat();
        let reply = ask(from, &at("/asked/good"), &[&good[..], &own].concat());
        let body = &reply.body;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(body.contains("got x-user=alice\n") && !body.contains("root"), "{body}");
        assert!(body.contains("got x-seen=me\n") && body.contains("got x-seen=too\n"), "{body}");
        assert!(!body.contains("got x-token") && !body.contains("evil"), "{body}");
        assert!(body.to_ascii_lowercase().contains("x-decided: yes"), "{body}");

        let reply = ask(from, &at("/login"), &[]);
        refused(&reply, 302, "ext_authz_denied");
        assert!(reply.body.contains("https://login.example/?back=/login"), "{reply:?}");
        assert_eq!(reply.body.to_ascii_lowercase().matches("set-cookie:").count(), 2, "{reply:?}");
        assert_eq!(ask(from, &at("/open"), &[]).status, 200, "no rule has it asked about");

        let asked = questions(&decider, "/asked?a=b").pop().expect("a question");
        let caller = format!("spiffe://mesh.local/ns/default/sa/{name}");
        assert_eq!(
            (&asked["source"], &asked["destination"]),
            (&caller.into(), &"spiffe://mesh.local/ns/default/sa/web".into())
        );
        assert_eq!(
            (&asked["port"], &asked["method"], &asked["policy"]),
            (&8080.into(), &"GET".into(), &"default/asked".into())
        );
        assert!(questions(&decider, "/open").is_empty());
    }
    // HTTP/2 is asked about stream by stream; this application answers it with nonsense.
    let reply = ask(&far, &url(vip4(1), 80, "/asked/two"), &["--http2-prior-knowledge"]);
    refused(&reply, 401, "ext_authz_denied");
    assert_eq!(questions(&decider, "/asked/two")[0]["protocol"], "HTTP/2");
    // Bytes that are no request cannot be asked about.
    let raw = far.run(PYTHON, &["-c", RAW, &web.ip().to_string()]).unwrap();
    assert_eq!(raw.trim(), "refused", "{raw}");
    let counted = |outcome| mesh.node(1).metrics().count("mesh_ext_authz_total", &[("outcome", outcome)]);
    assert_eq!((counted("allowed"), counted("failed")), (3, 0));
    assert!(counted("denied") >= 10, "{}", counted("denied"));
    let said = mesh
        .meshctl(&["authz", "check", "far", "web-0", "-p", "8080", "-X", "GET", "--path", "/asked/x"], "");
    assert!(said.contains("has extAuthz decider decide"), "{said}");
}

#[test]
fn without_an_answer_requests_are_refused_unless_the_mesh_says_otherwise() {
    let mesh = Mesh::builder().up();
    let (_web, _echo) = web(&mesh, 1);
    let client = mesh.pod(1, "client").up();
    let to = |path: &str| url(vip4(1), 80, path);
    policy(&mesh, EVERYTHING_BUT_OPEN);
    eventually("a mesh without the provider refuses", || ask(&client, &to("/asked"), &[]).status == 503);
    refused(&ask(&client, &to("/asked"), &[]), 503, "ext_authz_failed");
    assert_eq!(ask(&client, &to("/open"), &[]).status, 200);
    provider(&mesh, "");
    let said = || mesh.meshctl(&["status"], "");
    eventually("the missing service is told of", || {
        said().contains("extAuthz decider: service default/decider does not exist")
    });
    let (pod, decider) = decider(&mesh, 1);
    eventually("it decides now", || ask(&client, &to("/asked"), &["-H", "X-Token: good"]).status == 200);

    for path in ["/late", "/error"] {
        refused(&ask(&client, &to(path), &["-H", "X-Token: good"]), 503, "ext_authz_failed");
    }
    provider(&mesh, ", timeout: 10s");
    eventually("with time enough the late answer counts", || {
        ask(&client, &to("/late"), &["-H", "X-Token: good"]).status == 200
    });
    provider(&mesh, ", onFailure: allow");
    eventually("without an answer it is let in", || ask(&client, &to("/error"), &[]).status == 200);
    refused(&ask(&client, &to("/asked"), &[]), 401, "ext_authz_denied");

    drop(decider);
    pod.kill();
    eventually("nobody answers any more", || ask(&client, &to("/asked"), &[]).status == 200);
    provider(&mesh, ", onFailure: deny");
    eventually("and without leave it is refused", || ask(&client, &to("/asked"), &[]).status == 503);
    let counted = |outcome| mesh.node(1).metrics().count("mesh_ext_authz_total", &[("outcome", outcome)]);
    assert!(counted("failed") >= 4 && counted("unasked") >= 2 && counted("allowed") >= 2);
}
