//! Agents drain, endpoints drain, configuration changes, all under load over HTTP/1 and gRPC: no request is lost.

use std::{fs, time::Duration};

use mesh_tests::{
    Mesh, Pod,
    load::{Load, Running},
    process::Process,
    resources::{Service, at, authorization, on_proxy_loss, route, traffic, vip4},
    within,
};
use rustix::process::Signal;

use crate::{http2::called, http2::cart, words::settled, words::web};

/// Calls over one channel until a file is there. Prints who has answered how often, and each failure.
const CALLS: &str = r"
import grpc, os, sys, time
channel = grpc.insecure_channel(sys.argv[1])
echo = channel.unary_unary('/shop.Cart/Echo')
names, failed = {}, []
while not os.path.exists('stop'):
    try:
        name = echo(b'x', timeout=5).split(b'|')[0].decode()
        names[name] = names.get(name, 0) + 1
    except grpc.RpcError as e:
        failed.append(e.code().name + ': ' + e.details())
    print(sum(names.values()), len(failed), *sorted(names), flush=True)
    time.sleep(0.004)
print('done', failed, flush=True)
";

/// gRPC under way.
struct Calls<'p>(&'p Pod, Process);

impl<'p> Calls<'p> {
    fn start(pod: &'p Pod, number: u8) -> Self {
        let target = format!("ipv4:{}", at(vip4(number), 80));
        let calls = Self(pod, pod.start("calls", "/usr/bin/python3", &["-c", CALLS, &target]));
        calls.go_on(20);
        calls
    }

    /// Answers so far.
    fn now(&self) -> u64 {
        let log = self.1.log();
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().last().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
    }

    fn go_on(&self, more: u64) {
        let goal = self.now() + more;
        within(Duration::from_secs(20), "calls go on", || self.now() >= goal);
    }

    /// Ends them; none has failed.
    #[track_caller]
    fn stop(mut self) {
        fs::write(self.0.work().join("stop"), "").unwrap();
        assert!(self.1.wait(Duration::from_secs(10)).success());
        assert!(self.1.log().ends_with("done []\n"), "{}", self.1.log().lines().last().unwrap_or_default());
    }
}

/// Connections that stay, and connections of one request each.
fn loads(client: &Pod, number: u8) -> [Running; 2] {
    let load = || Load::to(at(vip4(number), 80));
    [load().keep_alive().threads(4).rate(300).start(client), load().threads(2).rate(100).start(client)]
}

#[track_caller]
fn none_lost(loads: [Running; 2], node: &mesh_tests::node::Node) {
    for load in loads {
        let report = load.stop();
        assert_eq!(report.failed(), 0, "{report:?}\n{}", node.log());
    }
}

#[test]
fn an_agent_that_is_told_to_end_loses_no_request() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&on_proxy_loss("site", "bypass"));
    let _a = web(&mesh, 2, "a", "site", "http", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let node = mesh.node(1);
    let loads = loads(&client, 1);
    for load in &loads {
        load.go_on(100);
    }
    node.signal_agent(Signal::TERM);
    for load in &loads {
        load.go_on(200);
    }
    node.wait_agent();
    // The kernel path goes on.
    for load in &loads {
        load.go_on(100);
    }
    none_lost(loads, node);
}

#[test]
fn an_endpoint_that_leaves_under_load_loses_no_request_of_either_version() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("cart", 2).http("http", 80).yaml());
    let _stays = (web(&mesh, 1, "a", "site", "http", 1), cart(&mesh, 1, "cart-a"));
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let (loads, calls) = (loads(&client, 1), Calls::start(&client, 2));
    let (b, _nginx) = web(&mesh, 2, "b", "site", "http", 1);
    let (cart_b, _server) = cart(&mesh, 2, "cart-b");
    within(Duration::from_secs(15), "they are called", || {
        let answers = |load: &Running| load.now().servers.contains_key("b");
        loads.iter().all(answers)
            && calls.1.log().lines().rev().nth(1).is_some_and(|line| line.ends_with("cart-a cart-b"))
    });
    b.drain(1500);
    cart_b.drain(1500);
    b.kill();
    cart_b.kill();
    for load in &loads {
        load.go_on(200);
    }
    calls.go_on(100);
    calls.stop();
    none_lost(loads, mesh.node(1));
}

#[test]
fn configuration_that_changes_under_load_loses_no_request() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("site", 1), ("cart", 2), ("other", 3)] {
        mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
    }
    let _servers = (
        web(&mesh, 2, "a", "site", "http", 1),
        web(&mesh, 1, "o", "other", "http", 1),
        cart(&mesh, 2, "cart-a"),
    );
    let client = mesh.pod(1, "client").account("shop").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    settled(&client, at(vip4(3), 80), &["o"]);
    // From the beginning: what was let in as bytes of any kind ends when requests begin to decide.
    mesh.apply(&authorization("calls", "cart", "allow", "[{to: [{paths: ['/*']}]}]"));
    let asked = || mesh.node(2).metrics().count("mesh_requests_total", &[("direction", "in")]);
    within(Duration::from_secs(15), "requests decide", || {
        called(&client, at(vip4(2), 80));
        asked() > 0
    });
    let (loads, calls) = (loads(&client, 1), Calls::start(&client, 2));
    let balancing = ["roundRobin", "random", "leastConnections"];
    for turn in 0..20u32 {
        mesh.apply(&route("site", &[("/", &[("site", 1 + turn % 3), ("other", 1)])]));
        mesh.apply(&route("cart", &[("/shop.Cart", &[("cart", 1 + turn)])]));
        mesh.apply(&traffic("site", &[&format!("balancing: {}", balancing[turn as usize % 3])]));
        let path = if turn % 2 == 0 { "/*" } else { "/shop.Cart/*" };
        mesh.apply(&authorization("calls", "cart", "allow", &format!("[{{to: [{{paths: ['{path}']}}]}}]")));
        for load in &loads {
            load.go_on(15);
        }
    }
    calls.go_on(50);
    calls.stop();
    let both = loads[0].now().servers;
    assert!(both.contains_key("a") && both.contains_key("o"), "{both:?}");
    none_lost(loads, mesh.node(1));
}
