//! The kernel's flow counters as series by name.
//!
//! totals (exact, pinned, counted while no agent runs) + open flows ──▶ `mesh_flow_*_total`
//!
//! Bytes are those of ended flows, which the kernel has added up, and those that open connections show now
//! (`open`). A series never falls: what a flow shows is missing for the moment between its end and the next
//! reading of the totals.
//!
//! Bounded by the kernel's own map, which has its overflow key.

use std::collections::{HashMap, HashSet};

use mesh_common::record::{DEST_OVERFLOW, DEST_SERVICE, DEST_WORKLOAD, Totals, TotalsKey, app};
use mesh_common::verdict::Verdict;
use mesh_core::snapshot::Snapshot;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use super::names::Names;
use crate::kernel::OpenFlow;

/// Which way a verdict sent a connection.
pub const fn path(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Captured | Verdict::InboundCaptured) => "proxy",
        Some(
            Verdict::Balanced
            | Verdict::Direct
            | Verdict::Outside
            | Verdict::Excluded
            | Verdict::InboundExcluded
            | Verdict::Bypassed
            | Verdict::InboundBypassed
            | Verdict::FlowSourceFull,
        ) => "kernel",
        _ => "none",
    }
}

/// Name of an application protocol.
pub const fn protocol(number: u8) -> &'static str {
    match number as u32 {
        app::TCP => "tcp",
        app::HTTP => "http",
        app::TLS => "tls",
        app::UDP => "udp",
        _ => "unknown",
    }
}

/// Name of a destination.
pub fn destination(names: &Names, snapshot: &Snapshot, kind: u8, id: u32) -> String {
    match kind {
        DEST_SERVICE => names.service(snapshot, id),
        DEST_WORKLOAD => names.workload(snapshot, id),
        DEST_OVERFLOW => "overflow".into(),
        _ => "outside".into(),
    }
}

/// Name of a source.
pub fn source(names: &Names, snapshot: &Snapshot, kind: u8, id: u32) -> String {
    if kind == DEST_OVERFLOW { "overflow".into() } else { names.workload(snapshot, id) }
}

/// Name of an endpoint; empty: none was asked for, or none is known.
pub fn endpoint(names: &Names, snapshot: &Snapshot, id: u32) -> String {
    if id == 0 { String::new() } else { names.workload(snapshot, id) }
}

/// Source, destination, endpoint, protocol, verdict: what makes a series.
type Series = (String, String, String, u8, u8);

/// Bytes sent and received that each series has shown.
#[derive(Debug, Default)]
pub struct Shown(HashMap<Series, [u64; 2]>);

/// What the kernel counted, and what is open.
pub struct Counted<'a> {
    /// Totals of ended flows.
    pub totals: &'a [(TotalsKey, Totals)],
    /// Open ones, of which nothing is in `totals`.
    pub open: &'a [OpenFlow],
    /// Is there a series an endpoint?
    pub by_endpoint: bool,
}

impl Counted<'_> {
    /// By name. Keys of one name (a number that was given out again) are added up.
    fn sums(&self, names: &Names, snapshot: &Snapshot) -> HashMap<Series, Totals> {
        let known: HashSet<TotalsKey> = self.totals.iter().map(|(key, _)| *key).collect();
        let open = self.open.iter().map(|flow| {
            let key = TotalsKey::of(&flow.flow, self.by_endpoint);
            // Established flows are in the totals, under this key or, where that found no room, another.
            let room = known.contains(&key) || known.contains(&TotalsKey { endpoint: 0, ..key });
            let (sent, received) = (flow.standing.sent, flow.standing.received);
            (if room { key } else { TotalsKey::OVERFLOW }, Totals { sent, received, ..Totals::default() })
        });
        let mut sums: HashMap<Series, Totals> = HashMap::new();
        for (key, t) in self.totals.iter().copied().chain(open) {
            let to = if self.by_endpoint { endpoint(names, snapshot, key.endpoint) } else { String::new() };
            let series = (
                source(names, snapshot, key.kind, key.source),
                destination(names, snapshot, key.kind, key.dest),
                to,
                key.protocol,
                key.verdict,
            );
            *sums.entry(series).or_default() += t;
        }
        sums
    }
}

/// Reads one counter.
type Field = fn(&Totals) -> u64;

/// The flow counters; `shown` is what they showed before.
pub fn totals(
    counted: &Counted<'_>,
    shown: &mut Shown,
    names: &Names,
    snapshot: &Snapshot,
) -> Vec<MetricFamily> {
    let mut sums = counted.sums(names, snapshot);
    for (series, sum) in &mut sums {
        let [sent, received] = shown.0.get(series).copied().unwrap_or_default();
        sum.sent = sum.sent.max(sent);
        sum.received = sum.received.max(received);
    }
    shown.0 = sums.iter().map(|(series, sum)| (series.clone(), [sum.sent, sum.received])).collect();
    let read: [(&'static m::Metric, Field); 7] = [
        (&m::FLOW_OPENED, |t| t.opened),
        (&m::FLOW_CLOSED, |t| t.closed),
        (&m::FLOW_FAILED, |t| t.failed),
        (&m::FLOW_REFUSED, |t| t.refused),
        (&m::FLOW_SENT, |t| t.sent),
        (&m::FLOW_RECEIVED, |t| t.received),
        (&m::FLOW_RETRANSMITS, |t| t.retransmits),
    ];
    let family = |(metric, value): (&'static m::Metric, Field)| {
        let mut family = Family::new(metric);
        for ((from, to, endpoint, app, verdict), sum) in &sums {
            let verdict = Verdict::from_u8(*verdict);
            let name = verdict.map_or("unknown", Verdict::name);
            family.add(&[from, to, endpoint, protocol(*app), path(verdict), name], value(sum) as f64);
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
    use crate::kernel::Standing;
    use mesh_common::record::Flow;

    fn names() -> Names {
        let names = Names::default();
        names.learn(mesh_core::ids::IdKind::Workload, 1, "a/client");
        names.learn(mesh_core::ids::IdKind::Workload, 2, "a/web-1");
        names.learn(mesh_core::ids::IdKind::Service, 7, "a/web:80");
        names.learn(mesh_core::ids::IdKind::Service, 8, "a/web:80");
        names
    }

    fn key(dest: u32, kind: u8) -> TotalsKey {
        TotalsKey { source: 1, dest, kind, protocol: 1, verdict: 3, pad: 0, endpoint: 0 }
    }

    fn text(counted: &Counted<'_>, shown: &mut Shown) -> String {
        let families = totals(counted, shown, &names(), &Snapshot::default());
        prometheus::TextEncoder::new().encode_to_string(&families).unwrap()
    }

    fn open(service: u32, sent: u64) -> OpenFlow {
        let flow = Flow {
            peer: mesh_common::addr::UNSPECIFIED,
            start_ns: 1,
            workload: 1,
            service,
            endpoint: 0,
            peer_workload: 2,
            flags: 0,
            identity: 0,
            at_fin_wait2: 0,
            peer_port_be: 0,
            verdict: 3,
            protocol: 1,
            namespace: 0,
            reserved: 0,
        };
        OpenFlow { cookie: 9, flow, standing: Standing { sent, ..Standing::default() } }
    }

    #[test]
    fn totals_of_one_name_are_added_up_and_overflow_is_shown() {
        let t = Totals { opened: 2, ..Totals::default() };
        let all = [(key(7, DEST_SERVICE), t), (key(8, DEST_SERVICE), t), (TotalsKey::OVERFLOW, t)];
        let text = text(&Counted { totals: &all, open: &[], by_endpoint: false }, &mut Shown::default());
        let line = r#"mesh_flow_opened_total{source="a/client",destination="a/web:80",endpoint="",protocol="http",path="proxy",verdict="captured"} 4"#;
        assert!(text.contains(line), "{text}");
        assert!(text.contains(r#"source="overflow",destination="overflow""#));
    }

    #[test]
    fn bytes_of_open_flows_are_added_and_never_taken_back() {
        let all = [(key(7, DEST_SERVICE), Totals { sent: 100, ..Totals::default() })];
        let mut shown = Shown::default();
        let sent = |text: &str| {
            let line = text.lines().find(|line| line.starts_with("mesh_flow_sent_bytes_total{")).unwrap();
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let now = text(&Counted { totals: &all, open: &[open(7, 50)], by_endpoint: false }, &mut shown);
        assert_eq!(sent(&now), 150);
        // Ended, and the totals are older than its end.
        let now = text(&Counted { totals: &all, open: &[], by_endpoint: false }, &mut shown);
        assert_eq!(sent(&now), 150);
        let all = [(key(7, DEST_SERVICE), Totals { sent: 160, ..Totals::default() })];
        let now = text(&Counted { totals: &all, open: &[], by_endpoint: false }, &mut shown);
        assert_eq!(sent(&now), 160);
        // One whose key found no room.
        let now = text(&Counted { totals: &all, open: &[open(9, 5)], by_endpoint: false }, &mut shown);
        assert!(now.contains(r#"mesh_flow_sent_bytes_total{source="overflow""#), "{now}");
    }

    #[test]
    fn endpoints_are_told_apart_where_that_was_asked_for() {
        let by = TotalsKey { endpoint: 2, ..key(7, DEST_SERVICE) };
        let t = Totals { opened: 3, ..Totals::default() };
        let all = [(by, t), (key(7, DEST_SERVICE), t)];
        let mut counted = Counted { totals: &all, open: &[], by_endpoint: true };
        let apart = text(&counted, &mut Shown::default());
        assert!(apart.contains(r#"endpoint="a/web-1",protocol="http",path="proxy",verdict="captured"} 3"#));
        counted.by_endpoint = false;
        let together = text(&counted, &mut Shown::default());
        assert!(together.contains(r#"endpoint="",protocol="http",path="proxy",verdict="captured"} 6"#));
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
