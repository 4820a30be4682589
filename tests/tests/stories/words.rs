//! Words that several stories share: a service with servers behind it, and its settling.

use std::{net::SocketAddr, ops::Range, time::Duration};

use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    load::{Load, Report},
    node::Node,
    process::Process,
    programs::{Nginx, connect_lines, line_server, nginx},
    within,
};

/// What Python says of a connection that is refused.
pub const REFUSED: &str = "ConnectionRefusedError";

/// A pod with nginx on 8080 that serves `port_name` of `service` with `weight`.
#[track_caller]
pub fn web(mesh: &Mesh, node: u8, name: &str, service: &str, port_name: &str, weight: u32) -> (Pod, Nginx) {
    let mut pod = mesh.pod(node, name).serves(service, port_name, 8080).weight(weight).outside().up();
    let server = nginx(&pod, &[8080]);
    pod.enrol();
    (pod, server)
}

/// A pod with a line server on 7000 that serves port `tcp` of `service`.
#[track_caller]
pub fn lines(mesh: &Mesh, node: u8, name: &str, service: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves(service, "tcp", 7000).outside().up();
    let server = line_server(&pod, 7000);
    pod.enrol();
    (pod, server)
}

/// Waits until the line servers that answer `pod` at `to` are exactly `names`, and none fails.
#[track_caller]
pub fn answered(pod: &Pod, to: SocketAddr, names: &[&str]) {
    within(Duration::from_secs(15), &format!("{to} is answered by {names:?}"), || {
        let seen = connect_lines(pod, to, 30);
        seen.errors.is_empty() && seen.servers.keys().map(String::as_str).eq(names.iter().copied())
    });
}

/// Waits until connections of `pod` to `to` are answered by exactly `names`, and none fails.
#[track_caller]
pub fn settled(pod: &Pod, to: SocketAddr, names: &[&str]) {
    within(Duration::from_secs(15), &format!("{to} is answered by {names:?}"), || {
        let report = Load::to(to).count(60).run(pod);
        report.failed() == 0 && report.servers.keys().map(String::as_str).eq(names.iter().copied())
    });
}

/// Waits until `to` refuses connections of `pod`, all of them.
#[track_caller]
pub fn refused(pod: &Pod, to: SocketAddr) {
    let refused =
        |count| connect_lines(pod, to, count).errors.get(REFUSED).copied() == Some(u64::from(count));
    eventually(&format!("{to} refuses {}", pod.name()), || refused(1));
    assert!(refused(5), "{to} from {}", pod.name());
}

/// Waits until nobody answers `pod` at `to`: it is nobody's address any more.
#[track_caller]
pub fn silent(pod: &Pod, to: SocketAddr) {
    within(Duration::from_secs(20), &format!("nobody answers {} at {to}", pod.name()), || {
        connect_lines(pod, to, 1).servers.is_empty()
    });
}

/// Connects from a source address, once.
pub fn connect_from(pod: &Pod, source: &str, to: SocketAddr) -> String {
    let script = "import socket, sys\n\
        try:\n  \
          s = socket.create_connection((sys.argv[2], int(sys.argv[3])), 2, (sys.argv[1], 0))\n  \
          print('answered', s.makefile().readline())\n\
        except OSError as error:\n  print(type(error).__name__)\n";
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    pod.run("/usr/bin/python3", &["-c", script, source, &address, &port]).unwrap()
}

/// `part` of `whole` is `wanted` percent, give or take five standard deviations of a fair draw.
#[track_caller]
pub fn share(part: u64, whole: u64, wanted: f64) {
    let (whole_f, p) = (whole as f64, wanted / 100.0);
    let spread = 5.0 * (whole_f * p * (1.0 - p)).sqrt();
    let off = (part as f64 - whole_f * p).abs();
    assert!(off <= spread + 1.0, "{part} of {whole} is not {wanted} % ± {spread:.0}");
}

/// Counters of a flow metric on `node`.
pub fn flows(node: &Node, what: &str, service: &str, path: &str) -> u64 {
    let destination = format!("default/{service}");
    let name = format!("mesh_flow_{what}_total");
    node.metrics().count(&name, &[("destination", &destination), ("path", path)])
}

/// Waits until the flow counter on `node` is `wanted`.
#[track_caller]
pub fn flows_become(node: &Node, what: &str, service: &str, path: &str, wanted: u64) {
    let name = format!("{what} flows to {service} by {path}: {wanted}");
    until(Duration::from_secs(5), &name, || flows(node, what, service, path), |&seen| seen == wanted);
}

/// No connection failed but those that were under way at a kill, at most one a thread each time. A kill
/// happens inside its system call: what begins after that has returned is safe.
#[track_caller]
pub fn only_what_was_open_is_lost(report: &Report, kills: &[Range<u64>], threads: u32) {
    for lost in &report.lost {
        let open = |kill: &Range<u64>| lost.begun < kill.end && lost.seen > kill.start;
        let last = || kills.iter().rfind(|kill| kill.end <= lost.begun);
        assert!(kills.iter().any(open), "lost: {lost:?}, begun after the kill {:?}: {report:?}", last());
    }
    assert!(report.failed() <= kills.len() as u64 * u64::from(threads), "{report:?}");
}
