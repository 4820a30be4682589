//! Health checks and what was done for workloads that do not get well, as series.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use crate::health::{ACTIONS, KINDS, Stats};

/// The families.
pub fn families(stats: &Stats) -> [MetricFamily; 6] {
    let both = |family: &mut Family, name: &str, words: [&str; 2], counts: &[AtomicU64; 2]| {
        for (word, count) in words.iter().zip(counts) {
            family.add(&[name, word], count.load(Relaxed) as f64);
        }
    };
    let (mut checks, mut actions) = (Family::new(&m::HEALTH_CHECKS), Family::new(&m::RECOVERY_ACTIONS));
    for (kind, counts) in KINDS.iter().zip(&stats.checks) {
        both(&mut checks, kind, ["passed", "failed"], counts);
    }
    for (action, counts) in ACTIONS.iter().zip(&stats.actions) {
        both(&mut actions, action, ["done", "failed"], counts);
    }
    let single = |metric, count: &AtomicU64| Family::single(metric, count.load(Relaxed) as f64);
    [
        checks.finish(),
        actions.finish(),
        single(&m::HEALTH_CHANGES, &stats.changes),
        single(&m::HEALTH_RUNNING, &stats.running),
        single(&m::HEALTH_UNHEALTHY, &stats.unhealthy),
        single(&m::HEALTH_LEFT_OUT, &stats.left_out),
    ]
}
