//! What a `TrafficPolicy` asks for of requests: limits, breakers, rate limits, faults.
//!
//! Not here: what it asks for of connections (traffic_policy).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;

use super::http_match::FieldMatch;
use super::traffic_policy::text;
use crate::error::{ApiError, Reason};
use crate::walk::At;

/// How many requests may be in flight from one node, and how long others wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestLimits {
    /// To the whole service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// To each of its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_endpoint: Option<u32>,
    /// Requests that wait for their turn; `None`: none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// For how long; `None`: a second.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "super::traffic_policy::some_text")]
    pub queue_timeout: Option<Duration>,
}

/// When an endpoint is left out because of what it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierAnswers {
    /// After so many answers of 500..=599 in a row, or failures that count as one.
    #[serde(rename = "consecutive5xx", skip_serializing_if = "Option::is_none")]
    pub consecutive_5xx: Option<u32>,
    /// The same of 502, 503, 504.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_failures: Option<u32>,
    /// Where it succeeds much less often than the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
}

/// When an endpoint succeeds too rarely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// Between two comparisons.
    #[serde(serialize_with = "text")]
    pub interval: Duration,
    /// Endpoints that are compared, at least.
    pub minimum_hosts: u32,
    /// Requests to an endpoint within the interval, at least.
    pub request_volume: u32,
    /// Standard deviations below the mean, in thousandths.
    pub stdev_factor: u32,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), minimum_hosts: 5, request_volume: 100, stdev_factor: 1900 }
    }
}

/// When nothing is sent any more for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerPolicy {
    /// What is given up.
    pub scope: BreakerScope,
    /// After so many failures in a row.
    pub consecutive_failures: u32,
    /// Or after so many failures of a hundred within ten seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_percent: Option<u8>,
    /// Requests within these ten seconds, at least.
    pub minimum_requests: u32,
    /// For how long the first time; twice as long each time after that.
    #[serde(serialize_with = "text")]
    pub open_for: Duration,
    /// At most for so long.
    #[serde(serialize_with = "text")]
    pub max_open_for: Duration,
}

/// What a breaker is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BreakerScope {
    /// Each endpoint.
    Endpoint,
    /// The service as a whole.
    Service,
}

/// How often something may be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// So many requests
    pub requests: u32,
    /// in this time.
    #[serde(serialize_with = "text")]
    pub per: Duration,
    /// So many at once after a rest.
    pub burst: u32,
    /// Who shares this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<RateBy>,
    /// The header by whose value it is counted; together with `by: header`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RateBy {
    /// Those of one source: its identity, else its address.
    Source,
    /// Those with the same value of a header.
    Header,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Of requests that have these headers alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FieldMatch>,
    /// Some wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Some are not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// Requests that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FaultDelay {
    /// So many of a hundred.
    pub percent: u8,
    /// For so long.
    #[serde(serialize_with = "text")]
    pub duration: Duration,
}

/// Requests that are answered instead of sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FaultAbort {
    /// So many of a hundred.
    pub percent: u8,
    /// With this.
    pub status: u16,
}

const MOST_REQUESTS: u64 = 1_000_000;
const QUEUE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(1);
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(10);
const OPEN: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(10);
const PER: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(24);
const DELAY: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(5);

impl RequestLimits {
    /// Its fields among those of `limits`.
    pub(super) const FIELDS: [&'static str; 4] =
        ["maxRequests", "maxRequestsPerEndpoint", "maxPending", "queueTimeout"];

    pub(super) fn read(fields: &crate::walk::Fields<'_>) -> Result<Self, ApiError> {
        let limit =
            |field| fields.read(field, |at| at.integer(1..=MOST_REQUESTS)).map(|n| n.map(|n| n as u32));
        let limits = Self {
            max_requests: limit("maxRequests")?,
            max_requests_per_endpoint: limit("maxRequestsPerEndpoint")?,
            max_pending: limit("maxPending")?,
            queue_timeout: fields.read("queueTimeout", |at| at.duration(QUEUE))?,
        };
        let limited = limits.max_requests.or(limits.max_requests_per_endpoint).is_some();
        let needs = [
            ("maxPending", limited, "only with maxRequests or maxRequestsPerEndpoint"),
            ("queueTimeout", limits.max_pending.is_some(), "only with maxPending"),
        ];
        for (field, holds, accepted) in needs {
            if let Some(at) = fields.get(field).filter(|_| !holds) {
                return Err(at.refuse(Reason::Conflict, accepted));
            }
        }
        Ok(limits)
    }
}

impl OutlierAnswers {
    /// Its fields among those of `outlierEjection`.
    pub(super) const FIELDS: [&'static str; 3] =
        ["consecutive5xx", "consecutiveGatewayFailures", "successRate"];

    pub(super) fn read(fields: &crate::walk::Fields<'_>) -> Result<Self, ApiError> {
        let row = |field| fields.read(field, |at| at.integer(1..=1000)).map(|n| n.map(|n| n as u32));
        Ok(Self {
            consecutive_5xx: row("consecutive5xx")?,
            consecutive_gateway_failures: row("consecutiveGatewayFailures")?,
            success_rate: fields.read("successRate", |at| SuccessRate::read(&at))?,
        })
    }
}

impl SuccessRate {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["interval", "minimumHosts", "requestVolume", "stdevFactor"], &[])?;
        let default = Self::default();
        let number =
            |field, most: u64| fields.read(field, |at| at.integer(1..=most)).map(|n| n.map(|n| n as u32));
        Ok(Self {
            interval: fields.read("interval", |at| at.duration(INTERVAL))?.unwrap_or(default.interval),
            minimum_hosts: number("minimumHosts", 1000)?.unwrap_or(default.minimum_hosts),
            request_volume: number("requestVolume", MOST_REQUESTS)?.unwrap_or(default.request_volume),
            stdev_factor: number("stdevFactor", 10_000)?.unwrap_or(default.stdev_factor),
        })
    }
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            scope: BreakerScope::Endpoint,
            consecutive_failures: 5,
            failure_percent: None,
            minimum_requests: 20,
            open_for: Duration::from_secs(1),
            max_open_for: Duration::from_mins(1),
        }
    }
}

impl BreakerPolicy {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known =
            ["scope", "consecutiveFailures", "failurePercent", "minimumRequests", "openFor", "maxOpenFor"];
        let fields = at.object(&known, &[])?;
        let default = Self::default();
        let scopes = [("endpoint", BreakerScope::Endpoint), ("service", BreakerScope::Service)];
        let in_a_row = fields.read("consecutiveFailures", |at| at.integer(1..=1000))?;
        let percent = fields.read("failurePercent", |at| at.integer(1..=100))?;
        let least = fields.read("minimumRequests", |at| at.integer(1..=MOST_REQUESTS))?;
        let breaker = Self {
            scope: fields.read("scope", |at| at.one_of(&scopes, &[]))?.unwrap_or(default.scope),
            consecutive_failures: in_a_row.map_or(default.consecutive_failures, |n| n as u32),
            failure_percent: percent.map(|n| n as u8),
            minimum_requests: least.map_or(default.minimum_requests, |n| n as u32),
            open_for: fields.read("openFor", |at| at.duration(OPEN))?.unwrap_or(default.open_for),
            max_open_for: fields.read("maxOpenFor", |at| at.duration(OPEN))?.unwrap_or(default.max_open_for),
        };
        if let Some(at) = fields.get("maxOpenFor").filter(|_| breaker.max_open_for < breaker.open_for) {
            return Err(at.refuse(Reason::Conflict, "not below openFor"));
        }
        Ok(Self { max_open_for: breaker.max_open_for.max(breaker.open_for), ..breaker })
    }
}

impl RateLimit {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["requests", "per", "burst", "by", "header"], &["units", "algorithm"])?;
        let requests = fields.need("requests", "1..=1000000")?.integer(1..=MOST_REQUESTS)? as u32;
        let burst = fields.read("burst", |at| at.integer(1..=MOST_REQUESTS))?;
        let by = fields.read("by", |at| {
            at.one_of(&[("source", RateBy::Source), ("header", RateBy::Header)], &["method", "route"])
        })?;
        let header = fields.read("header", |at| at.header_name())?;
        if by == Some(RateBy::Header) {
            fields.need("header", "the name of the header")?;
        } else if let Some(at) = fields.get("header") {
            return Err(at.refuse(Reason::Conflict, "only with by: header"));
        }
        Ok(Self {
            requests,
            per: fields.read("per", |at| at.duration(PER))?.unwrap_or(Duration::from_secs(1)),
            burst: burst.map_or(requests, |n| n as u32),
            by,
            header: header.map(|name| name.to_ascii_lowercase()),
        })
    }
}

impl Fault {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["headers", "delay", "abort"], &[])?;
        let fault = Self {
            headers: FieldMatch::headers(&fields)?,
            delay: fields.read("delay", |at| FaultDelay::read(&at))?,
            abort: fields.read("abort", |at| FaultAbort::read(&at))?,
        };
        if fault.delay.is_none() && fault.abort.is_none() {
            return Err(at.refuse(Reason::Conflict, "delay, abort or both"));
        }
        Ok(fault)
    }
}

impl FaultDelay {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["percent", "duration"], &[])?;
        Ok(Self {
            percent: fields.read("percent", |at| at.integer(0..=100))?.unwrap_or(100) as u8,
            duration: fields.need("duration", "a duration in 1ms..=5m")?.duration(DELAY)?,
        })
    }
}

impl FaultAbort {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["percent", "status"], &["grpcStatus"])?;
        Ok(Self {
            percent: fields.read("percent", |at| at.integer(0..=100))?.unwrap_or(100) as u8,
            status: fields.need("status", "400..=599")?.integer(400..=599)? as u16,
        })
    }
}
