//! Configuration that fits together badly, or does not fit: it is named, and the rest works.

use std::{fmt::Write as _, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh,
    eventually::until,
    load::Load,
    programs::nginx,
    resources::{Service, at, authorization, vip4, vip6},
};
use serde_json::json;

use crate::words::{settled, web};

/// An endpoint of port `tcp` of a service that nobody runs.
fn endpoint(name: &str, service: &str, address: &str) -> String {
    format!(
        "---\napiVersion: nodemesh.io/v1\nkind: Workload\nmetadata: {{name: {name}, namespace: default}}\nspec:\n\
         \x20 addresses: ['{address}']\n  services: [{{service: {service}, portName: tcp, targetPort: 8080}}]\n"
    )
}

/// What the agent says is wrong.
fn conditions(mesh: &Mesh) -> String {
    let answer = mesh.node(1).ask("status", json!({}), &[]).unwrap();
    answer.pointer("/status/conditions").map(ToString::to_string).unwrap_or_default()
}

#[track_caller]
fn named(mesh: &Mesh, words: &[&str]) {
    let what = format!("the status names {words:?}");
    until(
        Duration::from_secs(15),
        &what,
        || conditions(mesh),
        |text| words.iter().all(|word| text.contains(word)),
    );
}

#[track_caller]
fn unnamed(mesh: &Mesh, word: &str) {
    let what = format!("the status no longer names {word}");
    until(Duration::from_secs(15), &what, || conditions(mesh), |text| !text.contains(word));
}

#[test]
fn an_address_has_one_service_and_an_endpoint_at_it_is_left_out() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("one", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("two", 2).tcp("tcp", 80).yaml());
    let _servers = [web(&mesh, 1, "a", "one", "tcp", 1), web(&mesh, 1, "b", "two", "tcp", 1)];
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);

    let third = Service::vip("three", 1).tcp("tcp", 80).yaml();
    let error = format!("{:#}", mesh.try_meshctl(&["apply", "-f", "-"], &third).unwrap_err());
    assert!(error.contains("spec.vips[0]") && error.contains("default/one"), "{error}");

    for (name, address) in [("w4", vip4(2).to_string()), ("w6", vip6(2).to_string())] {
        mesh.apply(&endpoint(name, "one", &address));
        named(&mesh, &[name, &address, "default/two"]);
    }
    for (to, server) in [(vip4(1).into(), "a"), (vip6(1).into(), "a"), (vip4(2).into(), "b")] {
        let to: std::net::IpAddr = to;
        let report = Load::to(at(to, 80)).count(100).run(&client);
        assert_eq!((report.ok, report.failed()), (100, 0), "{report:?}");
        assert!(report.servers.keys().eq([server]), "{report:?}");
    }
    for name in ["w4", "w6"] {
        mesh.meshctl(&["delete", "workload", name], "");
        unnamed(&mesh, name);
    }
}

#[test]
fn a_service_with_more_endpoints_than_the_map_holds_is_named_and_others_serve() {
    let mesh = Mesh::builder().volatile_store().agent_args(&["--map-endpoints", "64"]).up();
    mesh.apply(&Service::vip("small", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("big", 2).tcp("tcp", 80).yaml());
    let _server = web(&mesh, 1, "a", "small", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let mut many = String::new();
    for number in 1..=200 {
        let _ = write!(many, "{}", endpoint(&format!("w{number}"), "big", &format!("10.99.0.{number}")));
    }
    mesh.apply(&many);
    named(&mesh, &["Service default/big", "ENDPOINTS is full", "endpoint ids", "--map-endpoints"]);
    let report = Load::to(at(vip4(1), 80)).count(200).run(&client);
    assert_eq!((report.ok, report.failed()), (200, 0), "{report:?}");
}

#[test]
fn with_room_for_one_of_everything_what_does_not_fit_is_named() {
    let sizes = ["services", "endpoints", "policy", "policy-cidrs", "flow-totals"];
    let args: Vec<String> = sizes.iter().flat_map(|name| [format!("--map-{name}"), "1".to_owned()]).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mesh = Mesh::builder().agent_args(&args).up();
    mesh.apply(&Service::vip("one", 1).tcp("tcp", 80).yaml());
    let (server, _nginx) = web(&mesh, 1, "a", "one", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    let _shut = mesh.pod(1, "shut").label("app", "shut").up();
    mesh.apply(&authorization("narrow", "shut", "allow", "[{from: [{serviceAccounts: [a]}]}]"));
    named(
        &mesh,
        &["SERVICES is full", "--map-endpoints", "AuthorizationPolicy default/narrow", "--map-policy"],
    );
    // Its service has an address, and room for no endpoint: refused at once. Its own address needs no room.
    let refused = Load::to(at(vip4(1), 80)).count(20).run(&client);
    assert_eq!((refused.ok, refused.errors.get("connect ConnectionRefused")), (0, Some(&20)), "{refused:?}");
    for to in [at(server.ip(), 8080), at(server.ip6(), 8080)] {
        let report = Load::to(to).count(100).run(&client);
        assert_eq!((report.ok, report.failed()), (100, 0), "{report:?}");
    }
    assert!(mesh.node(1).verdict(Verdict::TotalsFull) > 0, "and the totals are told to overflow");
}

#[test]
fn a_workload_without_room_is_refused_and_goes_on_outside_the_mesh() {
    let mesh = Mesh::builder().agent_args(&["--map-workloads", "3"]).up();
    let mut pods = ["a", "b", "c"].map(|name| mesh.pod(1, name).outside().up());
    let _server = nginx(&pods[2], &[8080]);
    pods[0].enrol();
    pods[1].enrol();
    // An entry for each address, of two families.
    named(&mesh, &["Workload default/b", "WORKLOADS is full", "--map-workloads"]);
    let error = format!("{:#}", pods[2].try_enrol().unwrap_err());
    assert!(error.contains("workload ids are taken: raise --map-workloads"), "{error}");
    for to in [at(pods[2].ip(), 8080), at(pods[2].ip6(), 8080)] {
        let report = Load::to(to).count(50).run(&pods[0]);
        assert_eq!((report.ok, report.failed()), (50, 0), "{report:?}");
    }
}
