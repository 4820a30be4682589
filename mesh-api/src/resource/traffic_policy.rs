//! `TrafficPolicy`: how traffic to services is treated, attached by `targetRefs`.
//!
//! The other planned fields are refused by name.
//! Not here: which policy wins where two target the same (the older; mesh-core's compile).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::locality::LocalityPolicy;
use super::mesh::HttpMode;
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
    /// By the client's address, so that few clients move when endpoints come and go.
    Maglev,
}

/// Keeps a client at its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Affinity {
    /// For so long after its last connection.
    #[serde(serialize_with = "text")]
    pub timeout: Duration,
}

/// How many connections there may be from one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionLimits {
    /// To the whole service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// To each of its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections_per_endpoint: Option<u32>,
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
        }
    }
}

/// Most connections that a limit can name.
const MAX_CONNECTIONS: u64 = 1_000_000;
const AFFINITY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const EJECTION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
const SLOW_START: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
/// The kernel waits in steps that begin at 200 ms.
const CONNECT: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_mins(1);

fn text<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&duration::format(*time))
}

#[expect(clippy::ref_option, reason = "what serde calls")]
fn some_text<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => text(time, to),
        None => to.serialize_none(),
    }
}

const UNBUILT: &[&str] = &["breaker", "outlier", "retry", "timeouts", "fault", "connectionPool"];
const UNBUILT_BALANCING: &[&str] = &["leastRequest", "p2c", "ewma", "ringHash", "consistentHash"];

impl TrafficPolicySpec {
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
        })
    }
}

impl Balancing {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let words = [
            ("roundRobin", Self::RoundRobin),
            ("random", Self::Random),
            ("leastConnections", Self::LeastConnections),
            ("maglev", Self::Maglev),
        ];
        at.one_of(&words, UNBUILT_BALANCING)
    }
}

impl Affinity {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["timeout"], &["cookie", "header", "query"])?;
        Ok(Self { timeout: fields.need("timeout", "a duration in 1s..=24h")?.duration(AFFINITY)? })
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
        let unbuilt = ["maxPending", "maxRequests", "maxRetries"];
        let fields = at.object(&["maxConnections", "maxConnectionsPerEndpoint"], &unbuilt)?;
        let limit =
            |field| fields.read(field, |at| at.integer(1..=MAX_CONNECTIONS)).map(|n| n.map(|n| n as u32));
        Ok(Self {
            max_connections: limit("maxConnections")?,
            max_connections_per_endpoint: limit("maxConnectionsPerEndpoint")?,
        })
    }
}

impl OutlierEjection {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = ["consecutiveConnectFailures", "baseEjectionTime", "maxEjectedPercent"];
        let fields = at.object(&known, &["consecutive5xx", "consecutiveGatewayFailures", "successRate"])?;
        let default = Self::default();
        let failures = fields.read("consecutiveConnectFailures", |at| at.integer(1..=1000))?;
        let percent = fields.read("maxEjectedPercent", |at| at.integer(1..=100))?;
        let base = fields.read("baseEjectionTime", |at| at.duration(EJECTION))?;
        Ok(Self {
            consecutive_connect_failures: failures.map_or(default.consecutive_connect_failures, |n| n as u32),
            base_ejection_time: base.unwrap_or(default.base_ejection_time),
            max_ejected_percent: percent.map_or(default.max_ejected_percent, |n| n as u8),
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
