//! The proxy's counters as series by name.

use std::collections::HashMap;

use mesh_core::outcome::{NO_GRPC, Outcome};
use mesh_core::snapshot::Snapshot;
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use super::names::Names;
use crate::path::ProxyStats;
use crate::path::hbone::stats::{Role, TunnelCounts};
use crate::path::series::{BUCKETS_US, RequestKey, Series, UNPROVED};
use crate::path::stats::Counts;

/// Labels of a request, without status and reason.
type Labels = [String; 6];

fn labels(key: &RequestKey, names: &Names, snapshot: &Snapshot) -> Labels {
    let destination = if key.service == 0 { "unknown".into() } else { names.service(snapshot, key.service) };
    [
        key.direction.name().into(),
        if key.source == UNPROVED { "unproved".into() } else { names.workload(snapshot, key.source) },
        destination,
        key.route.to_string(),
        key.spoken.name().into(),
        Outcome::of(key.status, key.grpc, key.reason).name().into(),
    ]
}

fn status(status: u16) -> String {
    if status == 0 { String::new() } else { status.to_string() }
}

fn grpc(code: u8) -> String {
    if code == NO_GRPC { String::new() } else { code.to_string() }
}

/// Those of requests.
fn requests(stats: &ProxyStats, names: &Names, snapshot: &Snapshot) -> Vec<MetricFamily> {
    let mut totals: HashMap<(Labels, u16, u8, &'static str), u64> = HashMap::new();
    let mut sums: HashMap<Labels, Series> = HashMap::new();
    for (key, series) in &stats.requests {
        let labels = labels(key, names, snapshot);
        *totals.entry((labels.clone(), key.status, key.grpc, key.reason)).or_default() += series.count;
        sums.entry(labels).or_default().add(series);
    }
    if stats.overflow.count > 0 {
        let overflow: Labels = std::array::from_fn(|_| "overflow".to_owned());
        totals.insert((overflow.clone(), 0, NO_GRPC, "overflow"), stats.overflow.count);
        sums.insert(overflow, stats.overflow.clone());
    }
    let mut requests = Family::new(&m::REQUESTS);
    for ((labels, code, grpc_code, reason), count) in &totals {
        let more = [status(*code), grpc(*grpc_code), (*reason).to_owned()];
        let values: Vec<&str> = labels.iter().chain(&more).map(String::as_str).collect();
        requests.add(&values, *count as f64);
    }
    let bounds = BUCKETS_US.map(|us| us as f64 / 1e6);
    let [mut duration, mut received, mut sent] =
        [&m::REQUEST_DURATION, &m::REQUEST_BYTES, &m::RESPONSE_BYTES].map(Family::new);
    for (labels, series) in &sums {
        let values = labels.each_ref().map(String::as_str);
        duration.add_histogram(&values, &bounds, &series.buckets, series.sum_us as f64 / 1e6);
        received.add(&values, series.received as f64);
        sent.add(&values, series.sent as f64);
    }
    [requests, duration, received, sent].map(Family::finish).into()
}

/// All families of the proxy.
pub fn families(stats: &ProxyStats, names: &Names, snapshot: &Snapshot) -> Vec<MetricFamily> {
    let mut all = requests(stats, names, snapshot);
    all.extend(counts(&stats.counts));
    all.extend(tunnels(&stats.tunnels));
    let mut lines = Family::new(&m::ACCESS_LOG_LINES);
    lines.add(&["written"], stats.lines.0 as f64);
    lines.add(&["dropped"], stats.lines.1 as f64);
    all.push(lines.finish());
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
    let hedges =
        by(&m::PROXY_HEDGES, &[("won", c.hedges_won), ("lost", c.hedged.saturating_sub(c.hedges_won))]);
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
    let mut all =
        vec![accepted, dropped, tokens, external, questions, mirrored, hedges, detected, originated]
            .into_iter()
            .map(Family::finish)
            .collect::<Vec<_>>();
    all.extend(plain.map(|(metric, value)| Family::single(metric, value as f64)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::stats::{Direction, Spoken};

    fn key(status: u16, grpc: u8) -> RequestKey {
        let spoken = if grpc == NO_GRPC { Spoken::Http1 } else { Spoken::Grpc };
        let route = "shop/web".into();
        RequestKey {
            source: 0,
            service: 3,
            status,
            grpc,
            direction: Direction::Out,
            spoken,
            route,
            reason: "",
        }
    }

    fn text(requests: Vec<(RequestKey, Series)>) -> String {
        let stats = ProxyStats { requests, ..ProxyStats::default() };
        let names = Names::default();
        names.learn(mesh_core::ids::IdKind::Service, 3, "shop/web:80");
        let all = families(&stats, &names, &Snapshot::default());
        prometheus::TextEncoder::new().encode_to_string(&all).unwrap()
    }

    #[test]
    fn requests_are_counted_by_status_and_timed_by_outcome() {
        let mut series = Series { count: 2, sum_us: 3000, received: 5, sent: 7, ..Series::default() };
        series.buckets[3] = 2;
        let all = [200, 204, 503].map(|status| (key(status, NO_GRPC), series.clone())).into();
        let text = text(all);
        let labels =
            r#"direction="out",source="outside",destination="shop/web:80",route="shop/web",protocol="http""#;
        for line in [
            format!(
                r#"mesh_requests_total{{{labels},outcome="server_error",status="503",grpc_status="",reason=""}} 2"#
            ),
            format!(r#"mesh_request_duration_seconds_count{{{labels},outcome="ok"}} 4"#),
            format!(r#"mesh_request_bytes_total{{{labels},outcome="ok"}} 10"#),
            format!(r#"mesh_response_bytes_total{{{labels},outcome="server_error"}} 7"#),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_status_of_grpc_says_how_it_came_out() {
        let one = Series { count: 1, ..Series::default() };
        let text = text([0, 5, 14].map(|code| (key(200, code), one.clone())).into());
        for (outcome, code) in [("ok", 0), ("client_error", 5), ("server_error", 14)] {
            let line = format!(
                r#"protocol="grpc",outcome="{outcome}",status="200",grpc_status="{code}",reason=""}} 1"#
            );
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    #[test]
    fn nobody_is_taken_for_the_outside_who_is_not_proved() {
        let unproved = RequestKey { source: UNPROVED, direction: Direction::In, ..key(200, NO_GRPC) };
        assert!(text(vec![(unproved, Series::default())]).contains(r#"direction="in",source="unproved""#));
    }
}
