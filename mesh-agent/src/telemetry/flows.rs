//! The kernel's flow counters as series by name.
//!
//! totals (exact, pinned, counted while no agent runs) ──▶ `mesh_flow_*_total`
//! ring of ended flows ──▶ `mesh_flow_duration_seconds`
//!
//! Bounded by the kernel's own map, which has its overflow key, and by [`DURATIONS`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::record::{
    DEST_OVERFLOW, DEST_SERVICE, DEST_WORKLOAD, Flow, FlowEvent, Totals, TotalsKey, app,
};
use mesh_common::verdict::Verdict;
use mesh_core::snapshot::Snapshot;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use super::names::Names;
use super::table::Table;
use crate::kernel::Kernel;

/// Upper bounds, seconds.
const BOUNDS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0];
const BUCKETS: usize = BOUNDS.len() + 1;
/// Series of durations.
const DURATIONS: usize = 4096;

/// What a duration is kept under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DurationKey {
    source: u32,
    dest: u32,
    kind: u8,
    protocol: u8,
    path: &'static str,
}

/// Durations of ended flows.
pub struct Durations(Table<DurationKey, BUCKETS>);

impl Default for Durations {
    fn default() -> Self {
        Self(Table::new(BOUNDS, DURATIONS))
    }
}

/// Which way a verdict sent a connection.
pub const fn path(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Captured | Verdict::InboundCaptured) => "proxy",
        Some(
            Verdict::Balanced
            | Verdict::Direct
            | Verdict::Outside
            | Verdict::Bypassed
            | Verdict::InboundBypassed
            | Verdict::FlowSourceFull,
        ) => "kernel",
        _ => "none",
    }
}

const fn protocol(number: u8) -> &'static str {
    match number as u32 {
        app::TCP => "tcp",
        app::HTTP => "http",
        app::TLS => "tls",
        _ => "unknown",
    }
}

fn destination(names: &Names, snapshot: &Snapshot, kind: u8, id: u32) -> String {
    match kind {
        DEST_SERVICE => names.service(snapshot, id),
        DEST_WORKLOAD => names.workload(snapshot, id),
        DEST_OVERFLOW => "overflow".into(),
        _ => "outside".into(),
    }
}

fn source(names: &Names, snapshot: &Snapshot, kind: u8, id: u32) -> String {
    if kind == DEST_OVERFLOW { "overflow".into() } else { names.workload(snapshot, id) }
}

impl Durations {
    fn record(&self, event: &FlowEvent, now: Instant) {
        let FlowEvent { flow, end_ns, .. } = event;
        let Flow { workload, service, peer_workload, protocol, verdict, start_ns, .. } = *flow;
        let (kind, dest) = match (service, peer_workload) {
            (0, 0) => (mesh_common::record::DEST_OUTSIDE, 0),
            (0, peer) => (DEST_WORKLOAD, peer),
            (service, _) => (DEST_SERVICE, service),
        };
        let path = path(Verdict::from_u8(verdict));
        let key = DurationKey { source: workload, dest, kind, protocol, path };
        self.0.record(key, Duration::from_nanos(end_ns.saturating_sub(start_ns)).as_secs_f64(), now);
    }

    /// As a family.
    pub fn family(&self, names: &Names, snapshot: &Snapshot) -> MetricFamily {
        let mut family = Family::new(&m::FLOW_DURATION);
        for (key, histogram) in self.0.read() {
            let (counts, sum) = (&histogram.buckets, histogram.sum);
            let Some(key) = key else {
                family.add_histogram(&["overflow"; 4], BOUNDS, counts, sum);
                continue;
            };
            let from = source(names, snapshot, key.kind, key.source);
            let to = destination(names, snapshot, key.kind, key.dest);
            family.add_histogram(&[&from, &to, protocol(key.protocol), key.path], BOUNDS, counts, sum);
        }
        family.finish()
    }
}

/// Reads the ring for as long as the agent runs.
pub async fn follow(kernel: Arc<Kernel>, durations: Arc<Durations>) {
    let mut events = match kernel.events() {
        Ok(events) => events,
        Err(error) => {
            tracing::error!(%error, "records of ended flows cannot be read: no durations in metrics");
            return;
        }
    };
    let mut batch = Vec::new();
    loop {
        batch.clear();
        if let Err(error) = events.next_batch(&mut batch).await {
            tracing::error!(%error, "records of ended flows cannot be read any more: no durations in metrics");
            return;
        }
        let now = Instant::now();
        for event in &batch {
            durations.record(event, now);
        }
    }
}

/// Reads one counter.
type Field = fn(&Totals) -> u64;

/// The flow counters. Keys of one name (a number that was given out again) are added up.
pub fn totals(all: &[(TotalsKey, Totals)], names: &Names, snapshot: &Snapshot) -> Vec<MetricFamily> {
    let mut sums: HashMap<(String, String, u8, u8), Totals> = HashMap::new();
    for (key, t) in all {
        let from = source(names, snapshot, key.kind, key.source);
        let to = destination(names, snapshot, key.kind, key.dest);
        *sums.entry((from, to, key.protocol, key.verdict)).or_default() += *t;
    }
    let read: [(&'static m::Metric, Field); 6] = [
        (&m::FLOW_OPENED, |t| t.opened),
        (&m::FLOW_CLOSED, |t| t.closed),
        (&m::FLOW_FAILED, |t| t.failed),
        (&m::FLOW_REFUSED, |t| t.refused),
        (&m::FLOW_SENT, |t| t.sent),
        (&m::FLOW_RECEIVED, |t| t.received),
    ];
    let family = |(metric, value): (&'static m::Metric, Field)| {
        let mut family = Family::new(metric);
        for ((from, to, app, verdict), sum) in &sums {
            let verdict = Verdict::from_u8(*verdict);
            let name = verdict.map_or("unknown", Verdict::name);
            family.add(&[from, to, protocol(*app), path(verdict), name], value(sum) as f64);
        }
        family.finish()
    };
    read.into_iter().map(family).collect()
}

/// Counts by verdict, and what the ring lost.
pub fn verdicts(counts: &[u64]) -> [MetricFamily; 2] {
    let mut family = Family::new(&m::VERDICTS);
    for (verdict, count) in Verdict::ALL.iter().zip(counts) {
        family.add(&[verdict.name()], *count as f64);
    }
    let lost = counts.get(Verdict::EventLost as usize).copied().unwrap_or(0);
    [family.finish(), Family::single(&m::FLOW_EVENTS_LOST, lost as f64)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_of_one_name_are_added_up_and_overflow_is_shown() {
        let names = Names::default();
        names.learn(mesh_core::ids::IdKind::Workload, 1, "a/client");
        names.learn(mesh_core::ids::IdKind::Service, 7, "a/web:80");
        names.learn(mesh_core::ids::IdKind::Service, 8, "a/web:80");
        let key = |dest, kind| TotalsKey { source: 1, dest, kind, protocol: 1, verdict: 3, pad: 0 };
        let t = Totals { opened: 2, ..Totals::default() };
        let all = [(key(7, DEST_SERVICE), t), (key(8, DEST_SERVICE), t), (key(0, DEST_OVERFLOW), t)];
        let families = totals(&all, &names, &Snapshot::default());
        assert_eq!(families.len(), 6);
        let text = prometheus::TextEncoder::new().encode_to_string(&families).unwrap();
        let line = r#"mesh_flow_opened_total{source="a/client",destination="a/web:80",protocol="http",path="proxy",verdict="captured"} 4"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains(r#"source="overflow",destination="overflow""#));
    }

    #[test]
    fn every_verdict_is_shown() {
        let counts: Vec<u64> = (0..u64::from(Verdict::COUNT)).collect();
        let text = prometheus::TextEncoder::new().encode_to_string(&verdicts(&counts)).unwrap();
        for verdict in Verdict::ALL {
            assert!(text.contains(&format!("verdict=\"{}\"}} {}", verdict.name(), verdict as u8)));
        }
        assert!(text.contains("mesh_flow_events_lost_total 16"));
    }
}
