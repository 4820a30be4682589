//! The alerts that come with the mesh: Prometheus' own tool takes them, each fires where it should, and what they ask
//! for exists.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use mesh_tests::{Mesh, eventually, shell};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus"))
}

fn promtool(args: &[&str]) -> String {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(folder());
    shell::run(&mut command, "").unwrap_or_else(|error| panic!("{error:#}"))
}

/// Names of our metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    words.filter(|word| word.starts_with("mesh_")).collect()
}

#[test]
fn prometheus_takes_the_rules_and_each_fires_where_it_should() {
    assert!(promtool(&["check", "rules", "rules.yml"]).contains("SUCCESS"));
    assert!(promtool(&["test", "rules", "rules.test.yml"]).contains("SUCCESS"));
    let rules = fs::read_to_string(folder().join("rules.yml")).unwrap();
    let tests = fs::read_to_string(folder().join("rules.test.yml")).unwrap();
    for line in rules.lines() {
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            let fires = [format!("alertname: {name}\n"), format!("alertname=\"{name}\"")];
            assert!(fires.iter().any(|fires| tests.contains(fires.as_str())), "{name} is not tested");
        }
    }
}

#[test]
fn what_the_rules_ask_for_is_served() {
    let mesh = Mesh::builder().up();
    let _a = mesh.pod(1, "a").up();
    eventually("an identity is there", || {
        mesh.node(1).get("/metrics").is_ok_and(|page| page.contains("identity=\"spiffe://mesh.local/ns/"))
    });
    let documented = include_str!("../../../docs/metrics.md");
    let control = mesh.fabric().metrics_page();
    let served = names(documented).into_iter().chain(names(&control)).collect::<BTreeSet<_>>();
    let rules = fs::read_to_string(folder().join("rules.yml")).unwrap();
    // A histogram is served as several.
    let asked: BTreeSet<&str> =
        names(&rules).into_iter().map(|name| name.trim_end_matches("_bucket")).collect();
    assert!(asked.len() > 10, "{asked:?}");
    let missing: Vec<_> = asked.difference(&served).collect();
    assert!(missing.is_empty(), "nobody serves {missing:?}");
}
