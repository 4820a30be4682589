//! What a `TrafficPolicy` asks for of requests, as wire messages.

use std::time::Duration;

use crate::proto::v1;
use crate::resource::{
    Affinity, BreakerPolicy, BreakerScope, ConnectionLimits, Fault, Hedge, OutlierEjection, RateBy,
    RateLimit, SuccessRate,
};

/// The parser keeps durations below 2³² ms.
pub(super) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn limits(limits: &ConnectionLimits) -> v1::ConnectionLimits {
    let requests = &limits.requests;
    v1::ConnectionLimits {
        max_connections: limits.max_connections.unwrap_or(0),
        max_connections_per_endpoint: limits.max_connections_per_endpoint.unwrap_or(0),
        max_requests: requests.max_requests.unwrap_or(0),
        max_requests_per_endpoint: requests.max_requests_per_endpoint.unwrap_or(0),
        max_pending: requests.max_pending.unwrap_or(0),
        queue_timeout_ms: requests.queue_timeout.map_or(0, millis),
    }
}

pub(super) fn ejection(ejection: &OutlierEjection) -> v1::OutlierEjection {
    let rate = |rate: SuccessRate| v1::SuccessRate {
        interval_ms: millis(rate.interval),
        minimum_hosts: rate.minimum_hosts,
        request_volume: rate.request_volume,
        stdev_factor: rate.stdev_factor,
    };
    v1::OutlierEjection {
        consecutive_connect_failures: ejection.consecutive_connect_failures,
        base_ejection_ms: millis(ejection.base_ejection_time),
        max_ejected_percent: ejection.max_ejected_percent.into(),
        consecutive_5xx: ejection.answers.consecutive_5xx.unwrap_or(0),
        consecutive_gateway_failures: ejection.answers.consecutive_gateway_failures.unwrap_or(0),
        success_rate: ejection.answers.success_rate.map(rate),
    }
}

pub(super) fn breaker(breaker: BreakerPolicy) -> v1::BreakerPolicy {
    v1::BreakerPolicy {
        service: breaker.scope == BreakerScope::Service,
        consecutive_failures: breaker.consecutive_failures,
        failure_percent: breaker.failure_percent.map_or(0, u32::from),
        minimum_requests: breaker.minimum_requests,
        open_ms: millis(breaker.open_for),
        max_open_ms: millis(breaker.max_open_for),
    }
}

pub(super) fn rate(rate: &RateLimit) -> v1::RateLimit {
    v1::RateLimit {
        requests: rate.requests,
        per_ms: millis(rate.per),
        burst: rate.burst,
        by_source: rate.by == Some(RateBy::Source),
        by_header: rate.header.clone().unwrap_or_default(),
    }
}

pub(super) fn fault(fault: &Fault) -> v1::Fault {
    v1::Fault {
        headers: fault.headers.iter().map(super::http::field_match).collect(),
        delay_percent: fault.delay.map_or(0, |delay| delay.percent.into()),
        delay_ms: fault.delay.map_or(0, |delay| millis(delay.duration)),
        abort_percent: fault.abort.map_or(0, |abort| abort.percent.into()),
        abort_status: fault.abort.map_or(0, |abort| abort.status.into()),
    }
}

pub(super) fn hedge(hedge: Hedge) -> v1::Hedge {
    v1::Hedge {
        after_ms: hedge.after.map_or(0, millis),
        percentile: hedge.percentile.map_or(0, u32::from),
        max_percent: hedge.max_percent.into(),
    }
}

/// `None`: it is not found out of requests.
pub(super) fn sticky(affinity: &Affinity) -> Option<v1::Sticky> {
    let sticky = v1::Sticky::default();
    Some(match affinity {
        Affinity::Timeout(_) => return None,
        Affinity::Header(header) => v1::Sticky { header: header.clone(), ..sticky },
        Affinity::Query(query) => v1::Sticky { query: query.clone(), ..sticky },
        Affinity::Cookie(cookie) => v1::Sticky {
            cookie: cookie.name.clone(),
            // The parser keeps it within a year.
            cookie_ttl_s: cookie.ttl.map_or(0, |ttl| ttl.as_secs() as u32),
            cookie_path: cookie.path.clone(),
            ..sticky
        },
    })
}
