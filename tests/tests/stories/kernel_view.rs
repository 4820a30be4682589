//! `meshctl status --kernel` names what is attached and how full the maps are; metrics say the same.

use std::{process::Command, time::Duration};

use mesh_common::maps;
use mesh_tests::{
    Mesh,
    eventually::until,
    load::Load,
    resources::{Service, at, vip4},
    shell,
};
use serde_json::Value;

use crate::words::{settled, web};

/// Everything that the agent attaches, by the programs' names.
const PROGRAMS: [&str; 9] = [
    "mesh_sock_ops",
    "mesh_release",
    "mesh_connect4",
    "mesh_connect6",
    "mesh_peer4",
    "mesh_peer6",
    "mesh_sk_idle",
    "mesh_signal",
    "mesh_exit",
];

const HOLD: &str = "import socket,sys,time\nheld=[socket.create_connection((sys.argv[1],80)) for _ in range(7)]\n\
    time.sleep(600)";

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
    found.unwrap_or_else(|| panic!("{name} is not among {list}"))
}

#[test]
fn status_kernel_names_every_program_and_the_fill_of_the_maps() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", 80).yaml());
    let _a = web(&mesh, 1, "a", "web", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a"]);
    let node = mesh.node(1);
    let ask = |args: &[&str]| -> Value {
        let text = node.meshctl(&[&["status", "--kernel", "-o", "json"], args].concat()).unwrap();
        serde_json::from_str(&text).unwrap()
    };

    let status = ask(&[]);
    let table = node.meshctl(&["status", "--kernel"]).unwrap();
    for name in PROGRAMS {
        let program = named(&status["programs"], name);
        assert!(program["id"].as_u64() > Some(0) && program["links"][0].as_u64() > Some(0), "{program}");
        assert!(table.contains(name), "{name} is not in\n{table}");
    }
    // What bpftool sees on the cgroup is what is told, and each is first in line here.
    let told: Vec<u64> =
        status["programs"].as_array().unwrap().iter().filter_map(|program| program["id"].as_u64()).collect();
    let seen = node.programs();
    assert!(!seen.is_empty() && seen.iter().all(|id| told.contains(id)), "{seen:?} are not all in {told:?}");
    assert_eq!(named(&status["programs"], "mesh_connect4")["order"], "1 of 1");
    assert_eq!(named(&status["programs"], "mesh_sk_idle")["target"], "2 namespaces");
    let bpftool = |id: u64| {
        let id = id.to_string();
        shell::run(Command::new("bpftool").args(["-j", "link", "show", "id", &id]), "").unwrap()
    };
    let link = named(&status["programs"], "mesh_connect4")["links"][0].as_u64().unwrap();
    assert!(bpftool(link).contains("\"cgroup\""), "link {link}: {}", bpftool(link));

    for map in maps::ALL {
        assert!(named(&status["maps"], map.name)["error"].is_null(), "{}: {status}", map.name);
    }
    assert_eq!(named(&status["maps"], maps::ENROLLED.name)["entries"], 2);
    assert_eq!(named(&status["maps"], maps::LISTENERS.name)["entries"], 8, "four a workload");
    assert!(named(&status["maps"], maps::SERVICES.name)["capacity"].as_u64() == Some(16_384));
    assert!(status["verdicts"]["balanced"].as_u64() > Some(0), "{status}");
    assert_eq!(status["features"].as_array().unwrap().len(), 7, "{status}");

    // With seven connections held open the arrays of flows hold seven, and a metric says so.
    let _holder = client.start("hold", "/usr/bin/python3", &["-c", HOLD, &vip4(1).to_string()]);
    let flows = |status: &Value| {
        let of = |name: &str| named(&status["maps"], name)["entries"].as_u64().unwrap_or(0);
        of(maps::FLOWS.name) + of(maps::FLOWS_ABROAD.name)
    };
    until(Duration::from_secs(10), "seven flows are known", || flows(&ask(&[])), |seen| *seen == 7);
    let entries = || {
        let metrics = node.metrics();
        let of = |name: &str| metrics.count("mesh_map_entries", &[("map", name)]);
        of(maps::FLOWS.name) + of(maps::FLOWS_ABROAD.name)
    };
    until(Duration::from_secs(20), "the metrics say so within ten seconds", entries, |seen| *seen == 7);
    assert_eq!(node.metrics().count("mesh_map_capacity", &[("map", maps::SERVICES.name)]), 16_384);

    // What a program costs, counted on request under load.
    let load = Load::to(at(vip4(1), 80)).rate(300).start(&client);
    let measured = ask(&["--measure"]);
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
    let connect = named(&measured["programs"], "mesh_connect4");
    let (runs, ns) = (connect["runs"].as_u64().unwrap(), connect["runNs"].as_u64().unwrap());
    assert!((100..=600).contains(&runs), "{runs} runs in a second of 300 connections: {connect}");
    assert!(ns > runs * 50 && ns < runs * 200_000, "{ns} ns in {runs} runs");
}
