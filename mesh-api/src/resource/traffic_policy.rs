//! `TrafficPolicy`: how traffic to services is treated, attached by `targetRefs`.
//!
//! Built: `http`, `onProxyLoss`, `balancing: roundRobin`; the other planned fields are refused by name.
//! Not here: which policy wins where two target the same (the older; mesh-core's compile).

use serde::Serialize;

use super::mesh::HttpMode;
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
    /// In turn, by weight.
    RoundRobin,
}

const UNBUILT: &[&str] = &[
    "affinity",
    "breaker",
    "limits",
    "outlier",
    "retry",
    "timeouts",
    "fault",
    "slowStart",
    "connectionPool",
    "locality",
];
const UNBUILT_BALANCING: &[&str] =
    &["leastRequest", "leastConnections", "random", "p2c", "ewma", "ringHash", "maglev", "consistentHash"];

impl TrafficPolicySpec {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["targetRefs", "http", "onProxyLoss", "balancing"], UNBUILT)?;
        let targets = fields.need("targetRefs", "a list of 1..=16 Services")?.list(1..=16)?;
        Ok(Self {
            target_refs: targets.iter().map(TargetRef::read).collect::<Result<_, _>>()?,
            http: fields.read("http", |at| HttpMode::read(&at))?,
            on_proxy_loss: fields.read("onProxyLoss", |at| {
                at.one_of(&[("bypass", OnProxyLoss::Bypass), ("refuse", OnProxyLoss::Refuse)], &[])
            })?,
            balancing: fields.read("balancing", |at| {
                at.one_of(&[("roundRobin", Balancing::RoundRobin)], UNBUILT_BALANCING)
            })?,
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
