//! What a `TrafficPolicy` asks for of requests: limits and queues, ejection for answers, breakers, rate limits, faults.

use std::{
    fs,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, eventually,
    node::Node,
    process::Process,
    programs::{Nginx, Reply, curl, curl_many, url},
    resources::{Service, at, traffic, vip4, vip6},
    within,
};

use crate::words::{settled, web};

const TO: [(&str, &str); 1] = [("destination", "default/shop:80")];

fn count(node: &Node, name: &str) -> u64 {
    node.metrics().count(name, &TO)
}

/// Requests that ended for this reason.
fn reasons(node: &Node, reason: &str) -> u64 {
    node.metrics().count("mesh_requests_total", &[("reason", reason), TO[0]])
}

/// The value of a header in what `curl -i` has shown.
fn shown<'r>(reply: &'r Reply, name: &str) -> Option<&'r str> {
    let named = |line: &'r str| line.split_once(": ").filter(|(field, _)| field.eq_ignore_ascii_case(name));
    reply.body.lines().find_map(named).map(|(_, value)| value.trim())
}

/// A mesh with service `shop`, its servers on these nodes, and a client on node 1.
fn shop(servers: &[(&str, u8)], policy: &[&str]) -> (Mesh, Pod, Vec<(Pod, Nginx)>) {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    let all = servers.iter().map(|(name, node)| web(&mesh, *node, name, "shop", "http", 1)).collect();
    let client = mesh.pod(1, "client").up();
    let names: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
    settled(&client, at(vip4(1), 80), &names);
    mesh.apply(&traffic("shop", policy));
    (mesh, client, all)
}

/// A download that takes three seconds.
fn drip(client: &Pod, number: u32) -> Process {
    let url = url(vip4(1), 80, "/drip/slow");
    let args = ["-s", "-o", "/dev/null", "-w", "%{http_code}\n", "--max-time", "20", &url];
    client.start(&format!("drip-{number}"), "/usr/bin/curl", &args)
}

fn ended(mut drip: Process) -> String {
    drip.wait(Duration::from_secs(20));
    drip.log().trim().to_owned()
}

#[test]
fn requests_wait_for_their_turn_and_too_many_are_refused() {
    let (mesh, client, servers) =
        shop(&[("a", 2)], &["limits: {maxRequests: 2, maxPending: 2, queueTimeout: 400ms}"]);
    fs::write(servers[0].0.work().join("files/slow"), vec![b'x'; 6000]).unwrap();
    let node = mesh.node(1);
    let front = [url(vip4(1), 80, "/"), url(vip6(1), 80, "/")];
    eventually("the policy is in force", || {
        curl(&client, &[&front[0]]);
        node.metrics().find("mesh_requests_waiting", &TO).next().is_some()
    });
    let held = [drip(&client, 1), drip(&client, 2)];
    eventually("two are under way", || count(node, "mesh_requests_in_flight") == 2);
    for front in &front {
        let reply = curl(&client, &["-i", front]);
        assert_eq!((reply.status, shown(&reply, "x-mesh-reason")), (503, Some("queue_timeout")), "{reply:?}");
        assert!((Duration::from_millis(400)..Duration::from_secs(2)).contains(&reply.took), "{reply:?}");
    }
    // With two that wait, the third is refused at once.
    mesh.apply(&traffic("shop", &["limits: {maxRequests: 2, maxPending: 2, queueTimeout: 20s}"]));
    let waiting = [drip(&client, 3), drip(&client, 4)];
    eventually("two wait", || count(node, "mesh_requests_waiting") == 2);
    let reply = curl(&client, &["-i", &front[0]]);
    assert_eq!((reply.status, shown(&reply, "x-mesh-reason")), (503, Some("queue_full")), "{reply:?}");
    assert!(held.into_iter().chain(waiting).all(|drip| ended(drip) == "200"), "all of them had their turn");
    assert!(reasons(node, "queue_timeout") >= 2 && reasons(node, "queue_full") >= 1);
    eventually("nothing is left", || count(node, "mesh_requests_in_flight") == 0);
}

#[test]
fn many_clients_share_what_an_endpoint_may_have() {
    let (mesh, client, _servers) = shop(
        &[("a", 1), ("b", 1)],
        &["limits: {maxRequestsPerEndpoint: 3, maxPending: 200, queueTimeout: 10s}"],
    );
    let node = mesh.node(1);
    let front = url(vip4(1), 80, "/");
    eventually("the policy is in force", || {
        curl(&client, &[&front]);
        node.metrics().find("mesh_requests_waiting", &TO).next().is_some()
    });
    let load = client.start("wrk", "/usr/bin/wrk", &["-t2", "-c64", "-d2s", "--latency", &front]);
    let mut seen = (0, 0);
    let mut load = load;
    while load.ended().is_none() {
        let of = |name| count(node, name);
        let (active, waiting) = (of("mesh_requests_in_flight"), of("mesh_requests_waiting"));
        seen = (seen.0.max(active), seen.1.max(waiting));
    }
    let said = load.log();
    assert!(
        said.contains("requests in") && !said.contains("Non-2xx") && !said.contains("Socket errors"),
        "{said}"
    );
    assert!(seen.0 <= 6 && seen.1 > 0, "{seen:?}");
    println!("in flight and waiting at most {seen:?}: {said}");
    eventually("nothing is left", || count(node, "mesh_requests_in_flight") == 0);
}

#[test]
fn an_endpoint_that_answers_503_is_left_out_and_comes_back() {
    let ejection = "outlierEjection: {consecutiveGatewayFailures: 3, baseEjectionTime: 2s}";
    let (mesh, client, servers) = shop(&[("a", 1), ("b", 2)], &[ejection]);
    let node = mesh.node(1);
    let front = url(vip4(1), 80, "/maybe/x");
    let busy = servers[1].0.work().join("busy");
    fs::write(&busy, "").unwrap();
    let of_b = || servers[1].1.hits("/maybe");
    for _ in 0..2 {
        within(Duration::from_secs(20), "b is left out", || {
            curl_many(&client, &front, 5);
            count(node, "mesh_ejected_endpoints") == 1
        });
        let begun = Instant::now();
        let replies = curl_many(&client, &front, 50);
        if begun.elapsed() < Duration::from_secs(1) {
            assert!(replies.iter().all(|reply| reply.name() == "a"), "{replies:?}");
        }
        within(Duration::from_secs(10), "its time is over", || count(node, "mesh_ejected_endpoints") == 0);
    }
    assert!(count(node, "mesh_ejections_total") >= 2);
    fs::remove_file(&busy).unwrap();
    let before = of_b();
    within(Duration::from_secs(20), "b is back", || {
        curl_many(&client, &front, 10).iter().all(|reply| reply.status == 200) && of_b() > before + 10
    });
}

#[test]
fn a_breaker_spares_a_service_that_fails_and_lets_it_come_back() {
    let breaker = "breaker: {scope: service, consecutiveFailures: 5, openFor: 2s, maxOpenFor: 2s}";
    let (mesh, client, servers) = shop(&[("a", 2)], &[breaker]);
    let node = mesh.node(1);
    let front = url(vip4(1), 80, "/maybe/x");
    let busy = servers[0].0.work().join("busy");
    fs::write(&busy, "").unwrap();
    let open = || curl(&client, &["-i", &front]);
    eventually("it opens", || shown(&open(), "x-mesh-reason") == Some("breaker_open"));
    let opened = Instant::now();
    let before = servers[0].1.hits("/maybe");
    let replies = curl_many(&client, &front, 100);
    assert!(replies.iter().all(|reply| reply.status == 503));
    // A probe each two seconds, if it was that long.
    let probes = opened.elapsed().as_secs() / 2 + 1;
    assert!(servers[0].1.hits("/maybe") <= before + probes, "nobody was asked but by probes");
    assert!(count(node, "mesh_breakers_open") == 1 && count(node, "mesh_breaker_opened_total") >= 1);
    fs::remove_file(&busy).unwrap();
    within(Duration::from_secs(20), "a probe closes it", || open().status == 200);
    assert!(curl_many(&client, &front, 50).iter().all(|reply| reply.status == 200));
    assert_eq!(count(node, "mesh_breakers_open"), 0);
}

#[test]
fn the_breaker_of_an_endpoint_leaves_the_others() {
    let (mesh, client, servers) =
        shop(&[("a", 1), ("b", 2)], &["breaker: {consecutiveFailures: 3, openFor: 1m, maxOpenFor: 1m}"]);
    let front = url(vip4(1), 80, "/maybe/x");
    fs::write(servers[0].0.work().join("busy"), "").unwrap();
    eventually("it opens", || {
        curl_many(&client, &front, 5);
        count(mesh.node(1), "mesh_breakers_open") == 1
    });
    let replies = curl_many(&client, &front, 60);
    assert!(replies.iter().all(|reply| reply.name() == "b"), "{replies:?}");
}

#[test]
fn each_source_has_its_own_rate_wherever_it_calls_from() {
    let policy = ["rateLimits: [{requests: 6, per: 10m, burst: 6, by: source}, {requests: 100, per: 10m}]"];
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    // What is open before a limit comes is not counted.
    mesh.apply(&traffic("shop", &policy));
    let (server, _nginx) = web(&mesh, 2, "a", "shop", "http", 1);
    let client = mesh.pod(1, "client").up();
    let near = mesh.pod(2, "near").account("near").up();
    let stranger = mesh.pod(1, "stranger").beside().up();
    let front = url(vip4(1), 80, "/");
    let direct = url(server.ip(), 8080, "/");
    eventually("the limit is in force", || {
        curl_many(&client, &front, 10).iter().any(|reply| reply.status == 429)
    });
    let reply = curl(&client, &["-i", &front]);
    assert_eq!((reply.status, shown(&reply, "x-mesh-reason")), (429, Some("rate_limited")), "{reply:?}");
    let wait: u32 = shown(&reply, "retry-after").expect("retry-after").parse().unwrap();
    assert!((1..=100).contains(&wait), "{reply:?}");
    let passed = |client: &Pod, to: &str| {
        let replies = curl_many(client, to, 12);
        assert!(replies.iter().all(|reply| [200, 429].contains(&reply.status)), "{replies:?}");
        replies.iter().filter(|reply| reply.status == 200).count()
    };
    assert_eq!(passed(&near, &front), 6, "on the same node, another identity");
    assert_eq!(passed(&stranger, &direct), 6, "outside of the mesh, by its address");
    assert_eq!(passed(&near, &direct), 0, "past the service, the same source");
    assert!(reasons(mesh.node(2), "rate_limited") > 12);
    assert_eq!(reasons(mesh.node(1), "rate_limited"), 0, "who is called counts");
}

#[test]
fn a_fault_strikes_those_that_it_is_for() {
    let fault = "fault: {headers: [{name: x-fault, value: 'yes'}], delay: {duration: 300ms}, \
                 abort: {percent: 50, status: 418}}";
    let (mesh, client, _servers) = shop(&[("a", 1)], &[fault]);
    let front = url(vip4(1), 80, "/");
    let struck = || curl(&client, &["-i", "-H", "x-fault: yes", &front]);
    eventually("it strikes", || shown(&struck(), "x-mesh-reason") == Some("fault_abort"));
    let mut aborted = 0;
    for _ in 0..20 {
        let reply = struck();
        assert!(reply.took >= Duration::from_millis(300) && [200, 418].contains(&reply.status), "{reply:?}");
        aborted += u32::from(reply.status == 418);
    }
    assert!((2..=18).contains(&aborted), "{aborted} of 20");
    let others = curl_many(&client, &front, 50);
    assert!(others.iter().all(|reply| reply.status == 200 && reply.took < Duration::from_millis(300)));
    assert!(reasons(mesh.node(1), "fault_abort") >= u64::from(aborted));
}

#[test]
fn an_agent_short_of_descriptors_says_so_and_keeps_what_it_has() {
    let (mesh, client, servers) = shop(&[("a", 1)], &[]);
    fs::write(servers[0].0.work().join("files/slow"), vec![b'x'; 12_000]).unwrap();
    let node = mesh.node(1);
    let front = url(vip4(1), 80, "/");
    let held = drip(&client, 1);
    eventually("it is under way", || node.metrics().count("mesh_proxy_open", &[]) > 0);
    let pid = node.agent_pid().to_string();
    let limit = |most: &str| {
        let done =
            std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={most}")]).status();
        assert!(done.expect("prlimit").success());
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    limit(&format!("{}:20000", open + open / 20));
    eventually("new connections are refused", || {
        let reply = curl(&client, &["-i", &front]);
        (reply.status, shown(&reply, "x-mesh-reason")) == (503, Some("overloaded"))
    });
    let dropped = node.metrics().count("mesh_proxy_dropped_total", &[("reason", "overloaded")]);
    assert!(dropped > 0);
    assert_eq!(ended(held), "200", "what was open goes on");
    limit("20000:20000");
    eventually("and taken again", || curl(&client, &[&front]).status == 200);
}

#[test]
fn streams_of_http2_wait_and_are_limited_as_requests_are() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    let (_pod, _server) = crate::http2::web(&mesh, 2, "a", "shop");
    let client = mesh.pod(1, "client").up();
    let front = url(vip4(1), 80, "/");
    let known = "--http2-prior-knowledge";
    eventually("the server answers", || curl(&client, &[known, &front]).status == 200);
    mesh.apply(&traffic("shop", &["limits: {maxRequests: 4, maxPending: 500, queueTimeout: 20s}"]));
    let node = mesh.node(1);
    eventually("the policy is in force", || {
        curl(&client, &[known, &front]);
        node.metrics().find("mesh_requests_waiting", &TO).next().is_some()
    });
    let codes = |front: &str, count: &str| {
        let said = client.run("h2load", &["-n", count, "-c", "4", "-m", "32", front]).expect("h2load");
        let line = said.lines().find_map(|line| line.strip_prefix("status codes: "));
        line.unwrap_or_else(|| panic!("h2load: {said}")).to_owned()
    };
    // nginx takes a thousand on a connection, and says which it has not looked at: those go on another one.
    let said = codes(&front, "5000");
    assert_eq!(reasons(node, "queue_timeout"), 0, "{said}");
    assert_eq!(said, "5000 2xx, 0 3xx, 0 4xx, 0 5xx", "all of them had their turn");

    mesh.apply(&Service::vip("few", 2).http("http", 80).yaml());
    mesh.apply(&traffic("few", &["rateLimits: [{requests: 50, per: 24h}]"]));
    let (_few, _few_server) = crate::http2::web(&mesh, 2, "few", "few");
    let front = url(vip4(2), 80, "/");
    eventually("the limit is in force", || curl(&client, &[known, &front]).status == 429);
    let reply = curl(&client, &[known, "-i", "-H", "content-type: application/grpc", &front]);
    assert_eq!(
        (shown(&reply, "grpc-status"), shown(&reply, "x-mesh-reason")),
        (Some("8"), Some("rate_limited"))
    );
    assert_eq!(codes(&front, "200"), "0 2xx, 0 3xx, 200 4xx, 0 5xx");
}
