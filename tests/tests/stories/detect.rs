//! Ports of `protocol: auto`: redis, SMTP and HTTP on the same kind of port, none of them declared.

use std::{net::SocketAddr, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{curl, curl_many, url, wait_for_ports},
    resources::{Service, at, vip4, vip6},
};

use crate::words::web;

const PYTHON: &str = "/usr/bin/python3";

/// A server of mail, from Python's library: it greets, then listens.
fn mail(mesh: &Mesh, node: u8, name: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves("mail", "any", 2525).outside().up();
    let run = "import asyncore, smtpd; smtpd.DebuggingServer(('::', 2525), None); asyncore.loop()";
    let mut server = pod.start("smtpd", PYTHON, &["-W", "ignore", "-c", run]);
    wait_for_ports(&pod, &mut server, &[2525]);
    pod.enrol();
    (pod, server)
}

/// Seconds until the greeting, and what the server says to a message; by Python's client.
const SEND: &str = r"
import smtplib, sys, time
begun = time.monotonic()
client = smtplib.SMTP(sys.argv[1], int(sys.argv[2]), timeout=5)
took = time.monotonic() - begun
assert client.helo()[0] == 250
assert client.sendmail('a@example', ['b@example'], 'Subject: x\r\n\r\nbody') == {}
client.quit()
print(took)
";

fn redis(mesh: &Mesh, node: u8, name: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves("store", "any", 6379).outside().up();
    let args =
        ["--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", "/tmp"];
    let mut server = pod.start("redis", "/usr/bin/redis-server", &args);
    wait_for_ports(&pod, &mut server, &[6379]);
    pod.enrol();
    (pod, server)
}

fn greeted(pod: &Pod, to: SocketAddr) -> Option<Duration> {
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let said = pod.run(PYTHON, &["-c", SEND, &ip, &port]).ok()?;
    Some(Duration::from_secs_f64(said.trim().parse().expect("a time")))
}

fn verdicts(mesh: &Mesh, verdict: &str) -> u64 {
    mesh.node(1).metrics().count("mesh_proxy_detected_total", &[("verdict", verdict)])
}

#[test]
fn whoever_speaks_first_is_understood_and_nobody_is_kept_waiting() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("mail", 1), ("store", 2), ("shop", 3)] {
        mesh.apply(&Service::vip(name, number).port("any", 80, "auto", "kernel").yaml());
    }
    let (_mail, _m) = mail(&mesh, 2, "mail-a");
    let (_store, _r) = redis(&mesh, 1, "store-a");
    let (_shop_a, _a) = web(&mesh, 1, "shop-a", "shop", "any", 1);
    let (_shop_b, _b) = web(&mesh, 2, "shop-b", "shop", "any", 1);
    let client = mesh.pod(1, "client").up();
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        eventually("mail goes out", || greeted(&client, to).is_some());
        for _ in 0..5 {
            let took = greeted(&client, to).expect("greeted");
            assert!(took < Duration::from_millis(150), "{took:?}");
        }
    }
    assert!(verdicts(&mesh, "server_first") >= 1 && verdicts(&mesh, "remembered") >= 5);
    for to in [vip4(2).to_string(), vip6(2).to_string()] {
        let ask = |args: &[&str]| {
            let fixed = ["-h", &to, "-p", "80", "--no-auth-warning"];
            client.run("redis-cli", &[&fixed[..], args].concat()).unwrap_or_default().trim().to_owned()
        };
        eventually("the store answers", || ask(&["PING"]) == "PONG");
        assert_eq!((ask(&["SET", "a", "1"]), ask(&["GET", "a"])), ("OK".to_owned(), "1".to_owned()));
    }
    assert!(verdicts(&mesh, "opaque") >= 3);
    // Requests of one connection are balanced: it was taken for HTTP.
    let shop = url(vip4(3), 80, "/");
    eventually("both answer one connection", || {
        let replies = curl_many(&client, &shop, 6);
        let names: std::collections::BTreeSet<_> =
            replies.iter().map(|reply| reply.name().to_owned()).collect();
        names.len() == 2
    });
    let slow = curl(&client, &["-i", &shop]);
    assert!(slow.status == 200 && slow.took < Duration::from_millis(100), "{slow:?}");
    assert!(verdicts(&mesh, "http") >= 2);
    // And routed.
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\nspec:\n\
         \x20 parentRefs: [{kind: Service, name: shop}]\n  rules:\n\
         \x20 - matches: [{path: {value: /closed}}]\n\
         \x20   filters: [{type: DirectResponse, directResponse: {statusCode: 410, body: gone}}]\n\
         \x20 - backendRefs: [{name: shop, port: 80}]\n",
    );
    eventually("a route holds there", || curl(&client, &[&url(vip4(3), 80, "/closed")]).status == 410);
    assert!(mesh.meshctl(&["get", "services"], "").contains("any:detect"));
}
