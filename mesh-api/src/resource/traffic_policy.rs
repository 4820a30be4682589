//! `TrafficPolicy`: how traffic to services is treated, attached by `targetRefs`.
//!
//! The other planned fields are refused by name. What is asked for of requests: resilience.
//! Not here: which policy wins where two target the same (the older; mesh-core's compile).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::affinity::Affinity;
use super::hedge::Hedge;
use super::locality::LocalityPolicy;
use super::mesh::HttpMode;
use super::resilience::{BreakerPolicy, Fault, OutlierAnswers, RateLimit, RequestLimits};
use crate::duration;
use crate::error::ApiError;
use crate::name::LABEL;
use crate::walk::At;

/// What a `TrafficPolicy` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// What it is for; at least one.
    pub target_refs: Vec<TargetRef>,
    /// Which path HTTP takes; `None`: the mesh's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpMode>,
    /// What new connections do while the proxy is gone; `None`: bypass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_proxy_loss: Option<OnProxyLoss>,
    /// How endpoints are chosen; `None`: round robin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balancing: Option<Balancing>,
    /// Keeps a client at its endpoint; `None`: each connection is for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How many connections there may be; `None`: any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ConnectionLimits>,
    /// When an endpoint is left out for a while; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_ejection: Option<OutlierEjection>,
    /// How an endpoint begins; `None`: with all of its weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// How long `connect()` may wait for an endpoint's answer; `None`: as the client's kernel has it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_text")]
    pub connect_timeout: Option<Duration>,
    /// Which endpoints come first; `None`: all are alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalityPolicy>,
    /// When nothing is sent any more for a while; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerPolicy>,
    /// How often each workload behind it may be asked; all of them hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimit>,
    /// What goes wrong on purpose; `None`: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// When a slow request is sent to a second endpoint as well; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// A service, or one port of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// Always the core group.
    group: &'static str,
    /// Always `Service`.
    kind: &'static str,
    /// Service of the same namespace.
    pub name: String,
    /// A port's name; `None`: every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// What new connections do while the proxy is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnProxyLoss {
    /// They take the kernel path to the route's weights.
    Bypass,
    /// They are refused.
    Refuse,
}

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Balancing {
    /// In turn, by weight; in the kernel at random by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// Of two drawn by weight, the one with fewer connections from this node for its weight.
    LeastConnections,
    /// The same with fewer requests in flight; on the kernel path with fewer connections.
    LeastRequests,
    /// The one that is expected to answer sooner; on the kernel path the one with fewer connections.
    PeakEwma,
    /// By the client's address, so that few clients move when endpoints come and go.
    Maglev,
}

/// How many connections and requests there may be from one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLimits {
    /// To the whole service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// To each of its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections_per_endpoint: Option<u32>,
    /// And requests.
    #[serde(flatten)]
    pub requests: RequestLimits,
}

/// When an endpoint is left out for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierEjection {
    /// After so many connections in a row that were not established.
    pub consecutive_connect_failures: u32,
    /// For how long the first time; the next time twice as long, then three times.
    #[serde(serialize_with = "text")]
    pub base_ejection_time: Duration,
    /// Of a service's endpoints, percent; one may always be ejected where there are two.
    pub max_ejected_percent: u8,
    /// And after what answers.
    #[serde(flatten)]
    pub answers: OutlierAnswers,
}

/// How an endpoint begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SlowStart {
    /// Until it has all of its weight: a tenth more at a time.
    #[serde(serialize_with = "text")]
    pub window: Duration,
}

impl Default for OutlierEjection {
    fn default() -> Self {
        Self {
            consecutive_connect_failures: 5,
            base_ejection_time: Duration::from_secs(30),
            max_ejected_percent: 50,
            answers: OutlierAnswers::default(),
        }
    }
}

/// Most connections that a limit can name.
const MAX_CONNECTIONS: u64 = 1_000_000;
const EJECTION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
const SLOW_START: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
/// The kernel waits in steps that begin at 200 ms.
const CONNECT: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_mins(1);

pub(super) fn text<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&duration::format(*time))
}

#[expect(clippy::ref_option, reason = "what serde calls")]
pub(super) fn some_text<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => text(time, to),
        None => to.serialize_none(),
    }
}

const UNBUILT: &[&str] = &["outlier", "retry", "timeouts", "connectionPool"];
const UNBUILT_BALANCING: &[&str] = &["ringHash", "consistentHash"];

impl TrafficPolicySpec {
    /// Is anything asked for that holds for requests of HTTP alone?
    pub fn asks_requests(&self) -> bool {
        self.breaker.is_some()
            || self.fault.is_some()
            || self.hedge.is_some()
            || self.affinity.as_ref().is_some_and(Affinity::asks_requests)
            || !self.rate_limits.is_empty()
            || self.limits.is_some_and(|limits| limits.requests != RequestLimits::default())
            || self.outlier_ejection.is_some_and(|ejection| ejection.answers != OutlierAnswers::default())
    }

    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = [
            "targetRefs",
            "http",
            "onProxyLoss",
            "balancing",
            "affinity",
            "limits",
            "outlierEjection",
            "connectTimeout",
            "slowStart",
            "locality",
            "breaker",
            "rateLimits",
            "fault",
            "hedge",
        ];
        let fields = at.object(&known, UNBUILT)?;
        let targets = fields.need("targetRefs", "a list of 1..=16 Services")?.list(1..=16)?;
        Ok(Self {
            target_refs: targets.iter().map(TargetRef::read).collect::<Result<_, _>>()?,
            http: fields.read("http", |at| HttpMode::read(&at))?,
            on_proxy_loss: fields.read("onProxyLoss", |at| {
                at.one_of(&[("bypass", OnProxyLoss::Bypass), ("refuse", OnProxyLoss::Refuse)], &[])
            })?,
            balancing: fields.read("balancing", |at| Balancing::read(&at))?,
            affinity: fields.read("affinity", |at| Affinity::read(&at))?,
            limits: fields.read("limits", |at| ConnectionLimits::read(&at))?,
            outlier_ejection: fields.read("outlierEjection", |at| OutlierEjection::read(&at))?,
            slow_start: fields.read("slowStart", |at| SlowStart::read(&at))?,
            connect_timeout: fields.read("connectTimeout", |at| at.duration(CONNECT))?,
            locality: fields.read("locality", |at| LocalityPolicy::read(&at))?,
            breaker: fields.read("breaker", |at| BreakerPolicy::read(&at))?,
            rate_limits: fields.each("rateLimits", 1..=8, |at| RateLimit::read(&at))?,
            fault: fields.read("fault", |at| Fault::read(&at))?,
            hedge: fields.read("hedge", |at| Hedge::read(&at))?,
        })
    }
}

impl Balancing {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let words = [
            ("roundRobin", Self::RoundRobin),
            ("random", Self::Random),
            ("leastConnections", Self::LeastConnections),
            ("leastRequests", Self::LeastRequests),
            ("peakEwma", Self::PeakEwma),
            ("maglev", Self::Maglev),
        ];
        at.one_of(&words, UNBUILT_BALANCING)
    }
}

impl SlowStart {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["window"], &["aggression", "minWeightPercent"])?;
        Ok(Self { window: fields.need("window", "a duration in 1s..=1h")?.duration(SLOW_START)? })
    }
}

impl ConnectionLimits {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = [&["maxConnections", "maxConnectionsPerEndpoint"][..], &RequestLimits::FIELDS].concat();
        let fields = at.object(&known, &["maxRetries"])?;
        let limit =
            |field| fields.read(field, |at| at.integer(1..=MAX_CONNECTIONS)).map(|n| n.map(|n| n as u32));
        Ok(Self {
            max_connections: limit("maxConnections")?,
            max_connections_per_endpoint: limit("maxConnectionsPerEndpoint")?,
            requests: RequestLimits::read(&fields)?,
        })
    }
}

impl OutlierEjection {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let own = ["consecutiveConnectFailures", "baseEjectionTime", "maxEjectedPercent"];
        let fields = at.object(&[&own[..], &OutlierAnswers::FIELDS].concat(), &[])?;
        let default = Self::default();
        let failures = fields.read("consecutiveConnectFailures", |at| at.integer(1..=1000))?;
        let percent = fields.read("maxEjectedPercent", |at| at.integer(1..=100))?;
        let base = fields.read("baseEjectionTime", |at| at.duration(EJECTION))?;
        Ok(Self {
            consecutive_connect_failures: failures.map_or(default.consecutive_connect_failures, |n| n as u32),
            base_ejection_time: base.unwrap_or(default.base_ejection_time),
            max_ejected_percent: percent.map_or(default.max_ejected_percent, |n| n as u8),
            answers: OutlierAnswers::read(&fields)?,
        })
    }
}

impl TargetRef {
    /// A service, or its port of this name.
    pub fn service(name: &str, section_name: Option<String>) -> Self {
        Self { group: "", kind: "Service", name: name.to_owned(), section_name }
    }

    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["group", "kind", "name", "sectionName"], &["namespace"])?;
        fields.need("kind", "Service")?.one_of(&[("Service", ())], &["HTTPRoute", "ExternalService"])?;
        fields.read("group", |at| at.one_of(&[("", ())], &[]))?;
        let name = fields.need("name", LABEL.accepted)?.checked(&LABEL)?;
        Ok(Self::service(&name, fields.read("sectionName", |at| at.checked(&LABEL))?))
    }
}
