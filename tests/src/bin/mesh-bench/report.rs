//! The one JSON shape of all benches, and its lines on the terminal.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use mesh_tests::shell;
use serde_json::{Map, Value, json};

use crate::stats::{Pairs, spread};

/// What a goal is about.
pub enum Goal {
    /// Lower end of the ratio's interval at least this.
    RatioAtLeast(f64),
    /// Upper end of the ratio's interval at most this.
    RatioAtMost(f64),
    /// Difference of ours and the peer at most this.
    DifferenceAtMost(f64),
    /// Ours at most this.
    AtMost(f64),
    /// For reading only.
    None,
}

/// What is measured.
pub struct Case<'a> {
    /// Which situation.
    pub place: &'a str,
    /// What of it.
    pub metric: &'a str,
    /// In what.
    pub unit: &'a str,
    /// What is wanted.
    pub goal: Goal,
    /// What proves it.
    pub proof: &'a Proof,
}

/// The cases of one run.
pub struct Report {
    bench: &'static str,
    /// `on` or `off`.
    mtls: &'static str,
    cases: Vec<Value>,
    missed: usize,
}

/// Counters that prove which path was measured.
pub type Proof = BTreeMap<String, u64>;

impl Report {
    /// An empty one.
    pub fn new(bench: &'static str, mtls: &'static str) -> Self {
        Self { bench, mtls, cases: Vec::new(), missed: 0 }
    }

    /// How many goals were not met.
    pub fn missed(&self) -> usize {
        self.missed
    }

    /// Adds a case of pairs against `peer`.
    pub fn pairs(&mut self, what: &Case<'_>, peer: &str, pairs: &Pairs) {
        let Case { place, metric, unit, goal, proof } = what;
        let (text, met) = match goal {
            Goal::RatioAtLeast(least) => {
                (format!("interval95.{peer}.lower >= {least}"), Some(pairs.ratio95[0] >= *least))
            }
            Goal::RatioAtMost(most) => {
                (format!("interval95.{peer}.upper <= {most}"), Some(pairs.ratio95[1] <= *most))
            }
            Goal::DifferenceAtMost(most) => {
                (format!("difference.{peer} <= {most}"), Some(pairs.difference <= *most))
            }
            Goal::AtMost(_) | Goal::None => (String::new(), None),
        };
        let difference = matches!(goal, Goal::DifferenceAtMost(_));
        let interval = if difference { pairs.difference95 } else { pairs.ratio95 };
        println!(
            "  {place:<28} {metric:<12} ours/{peer} {:.3} [{:.3}, {:.3}]  difference {:+.0} [{:+.0}, {:+.0}] {unit}  {}",
            pairs.ratio,
            pairs.ratio95[0],
            pairs.ratio95[1],
            pairs.difference,
            pairs.difference95[0],
            pairs.difference95[1],
            verdict(met, &text),
        );
        self.add(
            met,
            json!({
                "case": place, "metric": metric, "unit": unit, "rounds": pairs.ours.len() / 2,
                "ours": spread(&pairs.ours), "peers": one(peer, spread(&pairs.peer)),
                "ratio": one(peer, json!(pairs.ratio)), "difference": one(peer, json!(pairs.difference)),
                "interval95": one(peer, json!(interval)),
                "goal": text, "met": met, "proof": proof,
            }),
        );
    }

    /// Adds a case without a peer.
    pub fn alone(&mut self, what: &Case<'_>, ours: &[f64], value: f64) {
        let Case { place, metric, unit, goal, proof } = what;
        let (text, met) = match goal {
            Goal::AtMost(most) => (format!("{metric} <= {most}"), Some(value <= *most)),
            _ => (String::new(), None),
        };
        println!("  {place:<28} {metric:<12} {value:.2} {unit}  {}", verdict(met, &text));
        self.add(
            met,
            json!({
                "case": place, "metric": metric, "unit": unit, "rounds": ours.len(), "ours": spread(ours),
                "value": value, "peers": {}, "ratio": {}, "interval95": {},
                "goal": text, "met": met, "proof": proof,
            }),
        );
    }

    fn add(&mut self, met: Option<bool>, case: Value) {
        self.missed += usize::from(met == Some(false));
        self.cases.push(case);
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let commit = shell::run(Command::new("git").args(["rev-parse", "HEAD"]), "").unwrap_or_default();
        let report = json!({
            "bench": self.bench, "commit": commit.trim(), "machine": machine(self.mtls), "cases": self.cases,
        });
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

fn verdict(met: Option<bool>, goal: &str) -> String {
    match met {
        Some(true) => format!("goal {goal}: met"),
        Some(false) => format!("goal {goal}: NOT MET"),
        None => String::new(),
    }
}

fn one(name: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(name.to_owned(), value)]))
}

fn machine(mtls: &str) -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"), "cpus": cpus,
        "cpu": model.trim_start_matches(['\t', ' ', ':']), "congestion": "reno", "mtls": mtls,
        "profile": if cfg!(debug_assertions) { "dev (opt-level 1)" } else { "release" },
    })
}
