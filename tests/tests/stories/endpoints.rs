//! Endpoints come, drain, go and die under load; clients notice only what they must.

use std::{
    io::{Read, Write},
    time::Duration,
};

use mesh_tests::{
    Mesh,
    eventually::until,
    load::Load,
    programs::connect_lines,
    resources::{Service, at, vip4},
    within,
};

use crate::words::{settled, web};

#[test]
fn an_endpoint_is_added_drained_and_removed_under_load_without_an_error() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    let (_a, _) = web(&mesh, 1, "a", "web", "tcp", 1);
    let (_c, _) = web(&mesh, 1, "c", "site", "http", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    settled(&client, at(vip4(2), 80), &["c"]);

    let kernel = Load::to(at(vip4(1), 80)).threads(2).rate(500).start(&client);
    let proxy = Load::to(at(vip4(2), 80)).threads(2).rate(200).start(&client);
    let (b, _nginx_b) = web(&mesh, 2, "b", "web", "tcp", 1);
    let (d, _nginx_d) = web(&mesh, 2, "d", "site", "http", 1);
    let joined =
        |name: &'static str| move |report: &mesh_tests::load::Report| report.servers.contains_key(name);
    until(Duration::from_secs(10), "b takes connections", || kernel.now(), joined("b"));
    until(Duration::from_secs(10), "d takes requests", || proxy.now(), joined("d"));

    // Leaving first, ending later: nobody is refused.
    b.leave();
    d.leave();
    still(&kernel, "b");
    still(&proxy, "d");
    b.kill();
    d.kill();
    kernel.go_on(500);
    proxy.go_on(200);
    for load in [kernel, proxy] {
        let report = load.stop();
        assert_eq!(report.failed(), 0, "{report:?}");
    }
}

/// Waits until `name` gets nothing more.
#[track_caller]
fn still(load: &mesh_tests::load::Running, name: &str) {
    let mut last = (0, 0);
    within(Duration::from_secs(10), &format!("{name} is left alone"), || {
        let begin = load.now().ok;
        let report = load.go_on(50);
        let now = (report.servers.get(name).copied().unwrap_or(0), begin);
        let same = now.0 == last.0;
        last = now;
        same
    });
}

#[test]
fn a_killed_endpoint_is_withdrawn_when_its_cgroup_is_empty() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", 80).yaml());
    let (_a, _) = web(&mesh, 1, "a", "web", "tcp", 1);
    let (mut b, nginx) = web(&mesh, 2, "b", "web", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a", "b"]);

    let load = Load::to(at(vip4(1), 80)).threads(2).rate(500).start(&client);
    load.go_on(100);
    drop(nginx);
    b.kill();
    // Refusals while the agent does not know yet; then none.
    let begin = std::time::Instant::now();
    let mut seen = load.now();
    within(Duration::from_secs(5), "no more refusals", || {
        let later = load.go_on(100);
        let calm = later.failed() == seen.failed() && later.servers.get("b") == seen.servers.get("b");
        seen = later;
        calm
    });
    let report = load.stop();
    println!("withdrawn within {:?}, {} refused: {:?}", begin.elapsed(), report.failed(), report.errors);
    // Connections that were open when the server died may have been reset; others were refused.
    let known = ["connect ConnectionRefused", "read ConnectionReset", "write ConnectionReset", "read Closed"];
    assert!(report.errors.keys().all(|cause| known.contains(&cause.as_str())), "{report:?}");

    b.restart();
    let _again = mesh_tests::programs::nginx(&b, &[8080]);
    b.enrol();
    settled(&client, at(vip4(1), 80), &["a", "b"]);
}

#[test]
fn a_connection_outlives_the_withdrawal_of_its_endpoint() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("lines", 1).tcp("tcp", 7000).yaml());
    let mut pod = mesh.pod(1, "a").serves("lines", "tcp", 7000).outside().up();
    let _server = mesh_tests::programs::line_server(&pod, 7000);
    pod.enrol();
    let client = mesh.pod(1, "client").up();
    let to = at(vip4(1), 7000);
    mesh_tests::eventually("the service answers", || connect_lines(&client, to, 1).errors.is_empty());

    let mut stream = client.netns().with(|| std::net::TcpStream::connect((pod.ip(), 7000))).unwrap();
    pod.leave();
    mesh_tests::eventually("the service refuses", || !connect_lines(&client, to, 1).errors.is_empty());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"still here\n").unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 256];
    while !seen.ends_with(b"still here\n") {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "closed after {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..length]);
    }
}
