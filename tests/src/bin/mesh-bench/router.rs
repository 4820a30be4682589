//! The router by itself: how long does it take to find a rule among ten thousand?

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use mesh_core::{
    head::Head,
    route::{Backend, Edits, PathMatch, RouteSpec, RouteTable, RuleSpec},
};

use crate::{
    Options,
    report::{Case, Goal, Proof, Report},
    stats::percentile,
};

const RULES: usize = 10_000;
/// Look-ups of a sample, and samples.
const LOOKUPS: usize = 20_000;
const SAMPLES: usize = 50;

/// A request for a path.
struct Asked(String);

impl Head for Asked {
    fn method(&self) -> &'static str {
        "GET"
    }

    fn path(&self) -> &str {
        &self.0
    }

    fn query(&self) -> Option<&str> {
        None
    }

    fn authority(&self) -> &'static str {
        "shop.example"
    }

    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }

    fn any_header(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

/// Half of the rules are exact, half prefixes.
fn table() -> RouteTable {
    let rule = |n: usize| {
        let path = format!("/service-{}/item/{n}", n % 100);
        let path = if n.is_multiple_of(2) { PathMatch::Exact(path) } else { PathMatch::Prefix(path) };
        RuleSpec {
            matches: vec![path.into()],
            backends: vec![Backend { service: Some(1), weight: 1, edits: None }],
            edits: Edits::default(),
            action: None,
        }
    };
    RouteTable::new(&[RouteSpec {
        name: "default/all".into(),
        created_ms: 0,
        hostnames: Vec::new(),
        rules: (0..RULES).map(rule).collect(),
    }])
}

/// The case, where it was asked for.
pub fn run(options: &Options, report: &mut Report) {
    if !options.wants("l7", "10000 routes", "router") {
        return;
    }
    let table = table();
    let asked: Vec<Asked> = (0..RULES)
        .map(|n| n * 7919 % RULES)
        .map(|n| Asked(format!("/service-{}/item/{n}", n % 100)))
        .collect();
    let sample = || {
        let begun = Instant::now();
        let found =
            asked.iter().cycle().take(LOOKUPS).filter(|one| black_box(table.find(*one)).is_some()).count();
        assert_eq!(found, LOOKUPS, "every path has its rule");
        begun.elapsed().as_secs_f64() * Duration::from_secs(1).as_nanos() as f64 / LOOKUPS as f64
    };
    let times: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    let proof =
        Proof::from([("rules".to_owned(), RULES as u64), ("found".to_owned(), (LOOKUPS * SAMPLES) as u64)]);
    let case = Case {
        place: "10000 routes",
        metric: "router",
        unit: "ns",
        goal: Goal::AtMost(1000.0),
        proof: &proof,
    };
    report.alone(&case, &times, percentile(&times, 50.0));
}
