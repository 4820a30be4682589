//! The proxy's counters as series by name.

use std::collections::HashMap;

use mesh_core::snapshot::Snapshot;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use super::names::Names;
use crate::path::ProxyStats;
use crate::path::hbone::stats::{Role, TunnelCounts};
use crate::path::stats::{BUCKETS_US, Counts, Direction, RequestKey, Series};

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Out => "out",
        Direction::In => "in",
    }
}

/// Labels of a request, without status and reason.
type Labels = [String; 5];

fn labels(key: &RequestKey, names: &Names, snapshot: &Snapshot) -> Labels {
    let destination = if key.service == 0 { "unknown".into() } else { names.service(snapshot, key.service) };
    [
        direction(key.direction).into(),
        names.workload(snapshot, key.source),
        destination,
        key.route.to_string(),
        key.spoken.name().into(),
    ]
}

fn status(status: u16) -> String {
    if status == 0 { String::new() } else { status.to_string() }
}

/// All families of the proxy.
pub fn families(stats: &ProxyStats, names: &Names, snapshot: &Snapshot) -> Vec<MetricFamily> {
    let mut totals: HashMap<(Labels, u16, &'static str), u64> = HashMap::new();
    let mut durations: HashMap<Labels, Series> = HashMap::new();
    for (key, series) in &stats.requests {
        let labels = labels(key, names, snapshot);
        *totals.entry((labels.clone(), key.status, key.reason)).or_default() += series.count;
        let sum = durations.entry(labels).or_default();
        sum.count += series.count;
        sum.sum_us += series.sum_us;
        for (mine, theirs) in sum.buckets.iter_mut().zip(series.buckets) {
            *mine += theirs;
        }
    }
    if stats.overflow.count > 0 {
        let overflow: Labels = std::array::from_fn(|_| "overflow".to_owned());
        totals.insert((overflow.clone(), 0, "overflow"), stats.overflow.count);
        durations.insert(overflow, stats.overflow.clone());
    }
    let mut requests = Family::new(&m::REQUESTS);
    for ((labels, code, reason), count) in &totals {
        let [direction, source, destination, route, protocol] = labels;
        requests
            .add(&[direction, source, destination, route, protocol, &status(*code), reason], *count as f64);
    }
    let bounds = BUCKETS_US.map(|us| us as f64 / 1e6);
    let mut duration = Family::new(&m::REQUEST_DURATION);
    for (labels, series) in &durations {
        let labels = labels.each_ref().map(String::as_str);
        duration.add_histogram(&labels, &bounds, &series.buckets, series.sum_us as f64 / 1e6);
    }
    let mut all = vec![requests.finish(), duration.finish()];
    all.extend(counts(&stats.counts));
    all.extend(tunnels(&stats.tunnels));
    let mut audits = Family::new(&m::POLICY_AUDITED);
    for (policy, count) in &stats.audits {
        audits.add(&[policy], *count as f64);
    }
    all.extend(Some(audits.finish()).filter(|family| !family.get_metric().is_empty()));
    all
}

/// Counts by outcome or reason.
fn by(metric: &'static m::Metric, counts: &[(&str, u64)]) -> Family {
    let mut family = Family::new(metric);
    for (outcome, count) in counts {
        family.add(&[outcome], *count as f64);
    }
    family
}

/// A family without samples is none.
fn tunnels(counts: &TunnelCounts) -> impl Iterator<Item = MetricFamily> {
    let (mut tunnels, mut streams) = (Family::new(&m::HBONE_TUNNELS), Family::new(&m::HBONE_STREAMS));
    for role in Role::ALL {
        tunnels.add(&[role.name()], counts.tunnels[role as usize] as f64);
        streams.add(&[role.name()], counts.streams[role as usize] as f64);
    }
    let mut handshakes = Family::new(&m::HBONE_HANDSHAKES);
    for (role, outcome, fault, count) in &counts.handshakes {
        handshakes.add(&[role.name(), outcome, fault], *count as f64);
    }
    let mut refused = Family::new(&m::HBONE_REFUSED);
    for (reason, count) in &counts.refused {
        refused.add(&[reason], *count as f64);
    }
    let all = [tunnels.finish(), streams.finish(), handshakes.finish(), refused.finish()];
    all.into_iter().filter(|family| !family.get_metric().is_empty())
}

fn counts(c: &Counts) -> Vec<MetricFamily> {
    let mut accepted = Family::new(&m::PROXY_ACCEPTED);
    accepted.add(&["out"], c.accepted_out as f64);
    accepted.add(&["in"], c.accepted_in as f64);
    let reasons = [
        ("record_lost", c.record_lost),
        ("budget_connections", c.budget_connections),
        ("budget_bytes", c.budget_bytes),
        ("no_destination", c.no_destination),
        ("accept_failed", c.accept_failed),
        ("overloaded", c.overloaded),
        ("cut", c.cut),
    ];
    let dropped = by(&m::PROXY_DROPPED, &reasons);
    let tokens = by(
        &m::JWT_TOKENS,
        &[("checked", c.tokens_checked), ("known", c.tokens_known), ("refused", c.tokens_refused)],
    );
    let external = by(
        &m::EXT_AUTHZ,
        &[
            ("allowed", c.ext_authz_allowed),
            ("denied", c.ext_authz_denied),
            ("failed", c.ext_authz_failed),
            ("unasked", c.ext_authz_unasked),
        ],
    );
    let questions = by(
        &m::DNS_QUESTIONS,
        &[
            ("answered", c.dns_answered),
            ("forwarded", c.dns_forwarded),
            ("failed", c.dns_failed),
            ("refused", c.dns_refused),
        ],
    );
    let mirrored = by(
        &m::PROXY_MIRRORED,
        &[("sent", c.mirrored), ("skipped", c.mirror_skipped), ("failed", c.mirror_failed)],
    );
    let detected = by(
        &m::PROXY_DETECTED,
        &[
            ("http", c.detected_http1),
            ("http2", c.detected_http2),
            ("tls", c.detected_tls),
            ("opaque", c.detected_opaque),
            ("server_first", c.detected_server_first),
            ("silent", c.detected_silent),
            ("remembered", c.detected_remembered),
        ],
    );
    let originated = by(
        &m::TLS_ORIGINATED,
        &[
            ("ok", c.origin_ok),
            ("unknown_ca", c.origin_unknown_ca),
            ("expired", c.origin_expired),
            ("wrong_name", c.origin_wrong_name),
            ("bad_certificate", c.origin_bad_certificate),
            ("failed", c.origin_failed),
            ("timeout", c.origin_timeout),
        ],
    );
    let plain = [
        (&m::PROXY_OPEN, c.open),
        (&m::PROXY_HANDED_ON, c.handed_on),
        (&m::PROXY_RETRIES, c.retried),
        (&m::PROXY_RESETS, c.resets),
        (&m::PROXY_PANICS, c.panics),
        (&m::UPSTREAM_OPENED, c.upstream_opened),
        (&m::UPSTREAM_REUSED, c.upstream_reused),
        (&m::UPSTREAM_FAILED, c.upstream_failed),
        (&m::UPSTREAM_IDLE, c.upstream_idle),
    ];
    let mut all = vec![accepted, dropped, tokens, external, questions, mirrored, detected, originated]
        .into_iter()
        .map(Family::finish)
        .collect::<Vec<_>>();
    all.extend(plain.map(|(metric, value)| Family::single(metric, value as f64)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::stats::Spoken;

    #[test]
    fn requests_are_counted_by_status_and_timed_without_it() {
        let key = |status| RequestKey {
            source: 0,
            service: 3,
            status,
            direction: Direction::Out,
            spoken: Spoken::Http1,
            route: "shop/web".into(),
            reason: "",
        };
        let mut series = Series::default();
        (series.count, series.sum_us) = (2, 3000);
        series.buckets[3] = 2;
        let stats = ProxyStats {
            requests: vec![(key(200), series.clone()), (key(503), series)],
            ..ProxyStats::default()
        };
        let names = Names::default();
        names.learn(mesh_core::ids::IdKind::Service, 3, "shop/web:80");
        let all = families(&stats, &names, &Snapshot::default());
        let text = prometheus::TextEncoder::new().encode_to_string(&all).unwrap();
        assert!(text.contains(r#"protocol="http",status="503",reason=""} 2"#), "{text}");
        assert!(text.contains(r#"mesh_request_duration_seconds_count{direction="out",source="outside",destination="shop/web:80",route="shop/web",protocol="http"} 4"#), "{text}");
        assert!(text.contains("mesh_request_duration_seconds_sum"));
    }
}
