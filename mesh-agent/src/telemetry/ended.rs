//! Ended flows, from the kernel's ring: histograms, and whoever looks on.
//!
//! ring of ended flows ──▶ **ended** ──▶ `mesh_flow_duration_seconds`, `mesh_flow_rtt_seconds`
//!                            └──▶ `meshctl flows` (admin)
//!
//! Records may be lost: by the kernel where the ring is full, and counted there; by an onlooker who is too
//! slow, and told to him. Nobody's slowness costs memory: onlookers share one queue of [`QUEUE`] records,
//! which is there only while somebody looks on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::record::{FlowEvent, TotalsKey, flow};
use mesh_common::verdict::Verdict;
use mesh_core::snapshot::Snapshot;
use parking_lot::Mutex;
use prometheus::proto::MetricFamily;
use tokio::sync::broadcast;

use super::family::Family;
use super::flows::{destination, endpoint, path, protocol, source};
use super::metrics as m;
use super::names::Names;
use super::table::Table;
use crate::kernel::Kernel;

/// Upper bounds of durations, seconds.
const DURATIONS: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0];
/// Upper bounds of round-trip times, seconds.
const RTTS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5];
/// Series of each histogram.
const SERIES: usize = 4096;
/// Records that an onlooker may be behind: a ring full of them.
const QUEUE: usize = 4096;

const BUCKETS: usize = DURATIONS.len() + 1;
const _: () = assert!(RTTS.len() + 1 == BUCKETS);

/// What a histogram is kept under; its verdict is left out of the key, but for the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    flow: TotalsKey,
    path: &'static str,
}

/// What is known of ended flows. Shared.
pub struct Ended {
    durations: Table<Key, BUCKETS>,
    rtts: Table<Key, BUCKETS>,
    by_endpoint: bool,
    onlookers: Mutex<Option<broadcast::Sender<FlowEvent>>>,
}

impl Ended {
    /// None yet; `by_endpoint`: a series an endpoint.
    pub fn new(by_endpoint: bool) -> Self {
        Self {
            durations: Table::new(DURATIONS, SERIES),
            rtts: Table::new(RTTS, SERIES),
            by_endpoint,
            onlookers: Mutex::default(),
        }
    }

    /// From now on every record; who is more than [`QUEUE`] behind is told how many are missing.
    pub fn look_on(&self) -> broadcast::Receiver<FlowEvent> {
        self.onlookers.lock().get_or_insert_with(|| broadcast::channel(QUEUE).0).subscribe()
    }

    fn take(&self, batch: &[FlowEvent]) {
        let now = Instant::now();
        for event in batch {
            self.record(event, now);
        }
        let mut onlookers = self.onlookers.lock();
        if let Some(sender) = &*onlookers {
            if sender.receiver_count() == 0 {
                *onlookers = None;
                return;
            }
            for event in batch {
                // An error: the last onlooker has just gone.
                let _ = sender.send(*event);
            }
        }
    }

    fn record(&self, event: &FlowEvent, now: Instant) {
        let FlowEvent { flow, end_ns, srtt_us, .. } = event;
        let path = path(Verdict::from_u8(flow.verdict));
        let key = Key { flow: TotalsKey { verdict: 0, ..TotalsKey::of(flow, self.by_endpoint) }, path };
        let took = Duration::from_nanos(end_ns.saturating_sub(flow.start_ns));
        self.durations.record(key, took.as_secs_f64(), now);
        if flow.flags & flow::ESTABLISHED != 0 {
            self.rtts.record(key, f64::from(*srtt_us) / 1e6, now);
        }
    }

    /// Both histograms.
    pub fn families(&self, names: &Names, snapshot: &Snapshot) -> [MetricFamily; 2] {
        let family = |metric: &'static m::Metric, table: &Table<Key, BUCKETS>, bounds: &[f64]| {
            let mut family = Family::new(metric);
            for (key, histogram) in table.read() {
                let (counts, sum) = (&histogram.buckets, histogram.sum);
                let Some(Key { flow: key, path }) = key else {
                    family.add_histogram(&["overflow"; 5], bounds, counts, sum);
                    continue;
                };
                let from = source(names, snapshot, key.kind, key.source);
                let to = destination(names, snapshot, key.kind, key.dest);
                let chosen = endpoint(names, snapshot, key.endpoint);
                family.add_histogram(
                    &[&from, &to, &chosen, protocol(key.protocol), path],
                    bounds,
                    counts,
                    sum,
                );
            }
            family.finish()
        };
        [family(&m::FLOW_DURATION, &self.durations, DURATIONS), family(&m::FLOW_RTT, &self.rtts, RTTS)]
    }
}

/// Reads the ring for as long as the agent runs.
pub async fn follow(kernel: Arc<Kernel>, ended: Arc<Ended>) {
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
        ended.take(&batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_common::record::Flow;
    use tokio::sync::broadcast::error::TryRecvError;

    fn event(flags: u32, srtt_us: u32) -> FlowEvent {
        let flow = Flow {
            peer: mesh_common::addr::UNSPECIFIED,
            start_ns: 1_000,
            workload: 1,
            service: 7,
            endpoint: 0,
            peer_workload: 2,
            flags,
            identity: 0,
            at_fin_wait2: 0,
            peer_port_be: 0,
            verdict: 0,
            protocol: 0,
            namespace: 0,
            reserved: 0,
        };
        FlowEvent { flow, end_ns: 2_001_000, sent: 0, received: 0, srtt_us, retransmits: 0 }
    }

    #[test]
    fn what_was_established_has_a_round_trip_time() {
        let ended = Ended::new(true);
        ended.take(&[event(flow::ESTABLISHED, 70), event(0, 0)]);
        let names = Names::default();
        names.learn(mesh_core::ids::IdKind::Workload, 2, "a/web-1");
        let families = ended.families(&names, &Snapshot::default());
        let text = prometheus::TextEncoder::new().encode_to_string(&families).unwrap();
        let count = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert!(count("mesh_flow_duration_seconds_count").ends_with(" 2"), "{text}");
        assert!(count("mesh_flow_rtt_seconds_count").ends_with(" 1"), "{text}");
        assert!(text.contains(r#"endpoint="a/web-1""#), "{text}");
    }

    #[test]
    fn a_slow_onlooker_is_told_what_is_missing_and_the_queue_goes_with_the_last() {
        let ended = Ended::new(false);
        let mut slow = ended.look_on();
        let batch = vec![event(0, 0); QUEUE + 10];
        ended.take(&batch);
        assert!(matches!(slow.try_recv(), Err(TryRecvError::Lagged(10))));
        assert!(slow.try_recv().is_ok());
        drop(slow);
        ended.take(&batch);
        assert!(ended.onlookers.lock().is_none());
    }
}
