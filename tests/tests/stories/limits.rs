//! Nothing is unbounded: a full map and a spent budget refuse, count and say so, and others go on.

use std::time::Duration;

use mesh_common::maps;
use mesh_tests::{
    Mesh,
    eventually::until,
    load::Load,
    resources::{Service, at, vip4},
    within,
};
use serde_json::json;

use crate::words::{settled, web};

#[test]
fn a_full_map_is_refused_and_named_and_what_fits_goes_on() {
    // Two entries a service port: one an address family.
    let mesh = Mesh::builder().agent_args(&["--map-services", "8"]).up();
    mesh.apply(&Service::vip("first", 1).tcp("tcp", 80).yaml());
    let _a = web(&mesh, 1, "a", "first", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);

    for number in 2..10 {
        mesh.apply(&Service::vip(&format!("more-{number}"), number).tcp("tcp", 80).yaml());
    }
    let status = || mesh.node(1).ask("status", json!({}), &[]).unwrap().to_string();
    until(Duration::from_secs(10), "the status names the map", status, |text| {
        text.contains(maps::SERVICES.name)
    });
    within(Duration::from_secs(10), "meshctl names the map", || {
        mesh.meshctl(&["status"], "").contains(maps::SERVICES.name)
    });
    let report = Load::to(at(vip4(1), 80)).count(100).run(&client);
    assert_eq!((report.ok, report.failed()), (100, 0), "{report:?}");

    for number in 2..10 {
        mesh.meshctl(&["delete", "service", &format!("more-{number}")], "");
    }
    until(Duration::from_secs(20), "the map is no longer full", status, |text| {
        !text.contains(maps::SERVICES.name)
    });
}

#[test]
fn a_workload_that_spends_its_budget_is_refused_and_its_neighbour_is_not() {
    let mesh = Mesh::builder().agent_args(&["--budget-connections", "10"]).up();
    mesh.apply(&Service::vip("site", 1).http("http", 80).yaml());
    let _a = web(&mesh, 1, "a", "site", "http", 1);
    let greedy = mesh.pod(1, "greedy").up();
    let modest = mesh.pod(1, "modest").up();
    settled(&greedy, at(vip4(1), 80), &["a"]);
    settled(&modest, at(vip4(1), 80), &["a"]);

    let flood = Load::to(at(vip4(1), 80)).keep_alive().threads(30).rate(300).start(&greedy);
    let dropped = || mesh.node(1).metrics().count("mesh_proxy_dropped_total", &[]);
    until(Duration::from_secs(10), "the flood is refused", dropped, |count| *count > 0);
    let report = Load::to(at(vip4(1), 80)).keep_alive().threads(4).rate(200).count(400).run(&modest);
    assert_eq!((report.ok, report.failed()), (400, 0), "{report:?}");
    let report = flood.stop();
    assert!(report.ok > 0 && report.failed() > 0, "{report:?}");
}
