//! What policies say of the requests to a service port, field by field.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1;

use super::route_wire::field;
use crate::resilience::Resilience;
use crate::resilience::admission::Limits;
use crate::resilience::breaker::Breaking;
use crate::resilience::fault::Fault;
use crate::resilience::hedge::{Hedge, When};
use crate::resilience::outlier::{Outliers, Rates};
use crate::resilience::rate::{By, Rate};
use crate::resilience::sticky::{Cookie, Sticky};
use crate::route::Condition;

/// Where nobody says how long requests wait.
const WAIT: u32 = 1000;

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// The first of the policies that says something says it; `None`: none says anything of requests.
pub(super) fn resilience<'a>(
    levels: &(impl Iterator<Item = &'a v1::TrafficPolicy> + Clone),
) -> Option<Arc<Resilience>> {
    let rates = levels.clone().find(|p| !p.rate_limits.is_empty());
    let balancing = levels.clone().map(v1::TrafficPolicy::balancing).find(|b| *b != v1::Balancing::Unset);
    let asked = Resilience {
        limits: levels.clone().find_map(|p| p.limits.as_ref()).map(limits).unwrap_or_default(),
        outliers: levels.clone().find_map(|p| p.outlier_ejection.as_ref()).and_then(outliers),
        breaking: levels.clone().find_map(|p| p.breaker.as_ref()).map(breaking),
        rates: rates.into_iter().flat_map(|p| &p.rate_limits).map(rate).collect(),
        fault: levels.clone().find_map(|p| p.fault.as_ref()).and_then(fault),
        hedge: levels.clone().find_map(|p| p.hedge.as_ref()).map(hedge),
        sticky: levels.clone().find_map(|p| p.sticky.as_ref()).map(sticky),
        weighs: matches!(balancing, Some(v1::Balancing::LeastRequests | v1::Balancing::PeakEwma)),
    };
    (asked != Resilience::default()).then(|| Arc::new(asked))
}

fn limits(limits: &v1::ConnectionLimits) -> Limits {
    let (requests, per_endpoint) = (limits.max_requests, limits.max_requests_per_endpoint);
    if requests == 0 && per_endpoint == 0 {
        return Limits::default();
    }
    let wait = if limits.queue_timeout_ms == 0 { WAIT } else { limits.queue_timeout_ms };
    Limits { requests, per_endpoint, pending: limits.max_pending, wait: millis(wait) }
}

/// `None`: answers do not count.
fn outliers(ejection: &v1::OutlierEjection) -> Option<Outliers> {
    let rates = |rate: &v1::SuccessRate| Rates {
        interval: millis(rate.interval_ms.max(100)),
        hosts: rate.minimum_hosts.max(1),
        requests: rate.request_volume.max(1),
        factor: rate.stdev_factor,
    };
    let outliers = Outliers {
        bad: ejection.consecutive_5xx,
        gateway: ejection.consecutive_gateway_failures,
        rate: ejection.success_rate.as_ref().map(rates),
        base: millis(ejection.base_ejection_ms),
    };
    let counts = outliers.bad > 0 || outliers.gateway > 0 || outliers.rate.is_some();
    counts.then_some(outliers)
}

fn breaking(breaker: &v1::BreakerPolicy) -> Breaking {
    let open_for = millis(breaker.open_ms.max(1));
    Breaking {
        service: breaker.service,
        in_a_row: breaker.consecutive_failures,
        percent: breaker.failure_percent.min(100),
        least: breaker.minimum_requests.max(1),
        open_for,
        most: millis(breaker.max_open_ms).max(open_for),
    }
}

fn rate(rate: &v1::RateLimit) -> Rate {
    let by = match (rate.by_source, rate.by_header.as_str()) {
        (true, _) => By::Source,
        (false, "") => By::All,
        (false, header) => By::Header(header.into()),
    };
    Rate::new(rate.requests, millis(rate.per_ms.max(1)), rate.burst, by)
}

/// `None`: one of its expressions cannot be compiled, and nobody knows whom it is for.
fn fault(fault: &v1::Fault) -> Option<Fault> {
    let headers = fault.headers.iter().map(field).collect::<Option<_>>()?;
    let delay = (fault.delay_ms > 0).then(|| (fault.delay_percent, millis(fault.delay_ms)));
    let status = u16::try_from(fault.abort_status).ok().filter(|status| (400..=599).contains(status));
    Some(Fault {
        of: Condition { headers, ..Condition::default() },
        delay,
        abort: status.map(|status| (fault.abort_percent, status)),
    })
}

fn sticky(sticky: &v1::Sticky) -> Sticky {
    if !sticky.header.is_empty() {
        return Sticky::Header(sticky.header.as_str().into());
    }
    if !sticky.query.is_empty() {
        return Sticky::Query(sticky.query.as_str().into());
    }
    let ttl = Some(sticky.cookie_ttl_s).filter(|s| *s > 0).map(|s| Duration::from_secs(s.into()));
    let (name, path) = (sticky.cookie.as_str().into(), sticky.cookie_path.as_str().into());
    Sticky::Cookie(Cookie { name, ttl, path })
}

fn hedge(hedge: &v1::Hedge) -> Hedge {
    let when = match hedge.percentile {
        0 => When::After(millis(hedge.after_ms.max(1))),
        percent => When::Percentile(percent.min(99)),
    };
    Hedge { when, max_percent: hedge.max_percent }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(policies: &[v1::TrafficPolicy]) -> Option<Arc<Resilience>> {
        resilience(&policies.iter())
    }

    #[test]
    fn a_policy_that_says_nothing_of_requests_costs_nothing() {
        let connections = v1::ConnectionLimits { max_connections: 5, ..Default::default() };
        let ejection = v1::OutlierEjection { consecutive_connect_failures: 5, ..Default::default() };
        let policy = v1::TrafficPolicy {
            limits: Some(connections),
            outlier_ejection: Some(ejection),
            balancing: v1::Balancing::LeastConnections.into(),
            ..Default::default()
        };
        assert_eq!(of(&[policy]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn each_field_is_the_first_policys_that_has_it() {
        let section = v1::TrafficPolicy {
            limits: Some(v1::ConnectionLimits { max_requests: 5, max_pending: 3, ..Default::default() }),
            rate_limits: vec![v1::RateLimit { requests: 10, per_ms: 1000, burst: 2, ..Default::default() }],
            ..Default::default()
        };
        let whole = v1::TrafficPolicy {
            limits: Some(v1::ConnectionLimits { max_requests: 99, ..Default::default() }),
            breaker: Some(v1::BreakerPolicy { consecutive_failures: 3, open_ms: 2000, ..Default::default() }),
            outlier_ejection: Some(v1::OutlierEjection {
                consecutive_5xx: 4,
                base_ejection_ms: 1000,
                ..Default::default()
            }),
            fault: Some(v1::Fault { abort_percent: 5, abort_status: 503, ..Default::default() }),
            balancing: v1::Balancing::PeakEwma.into(),
            ..Default::default()
        };
        let all = of(&[section, whole]).unwrap();
        let limits = Limits { requests: 5, per_endpoint: 0, pending: 3, wait: Duration::from_secs(1) };
        assert_eq!(all.limits, limits);
        assert_eq!(*all.rates, [Rate { every: 100_000_000, burst: 2, by: By::All }]);
        let breaking = all.breaking.as_ref().unwrap();
        assert_eq!((breaking.in_a_row, breaking.open_for, breaking.most), (3, millis(2000), millis(2000)));
        assert_eq!(all.outliers.map(|o| (o.bad, o.gateway, o.base)), Some((4, 0, millis(1000))));
        assert_eq!(all.fault.as_ref().unwrap().abort, Some((5, 503)));
        assert!(all.weighs && all.follows() && all.chooses());
    }
}
