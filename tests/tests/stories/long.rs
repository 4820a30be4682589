//! Stories that take minutes: `cargo xtask test --all`.

use std::{
    thread,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh,
    load::Load,
    resources::{Service, at, vip4},
};

use crate::words::{settled, web};

/// The default lease.
const LEASE: Duration = Duration::from_secs(30);

#[test]
fn a_control_plane_away_for_ten_lease_times_deregisters_nobody() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "raw", "tcp", 1), web(&mesh, 2, "b", "raw", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a", "b"]);
    let load = Load::to(at(vip4(1), 80)).rate(100).start(&client);
    mesh.kill_control();
    // The subject is the time that passes: no answer to wait for.
    thread::sleep(LEASE * 10);
    mesh.start_control();
    let begin = Instant::now();
    while begin.elapsed() < LEASE * 2 {
        let before = load.now().servers;
        let after = load.go_on(100).servers;
        assert!(["a", "b"].iter().all(|name| after[*name] > before[*name]), "{before:?} {after:?}");
    }
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
}
