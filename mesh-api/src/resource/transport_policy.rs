//! `TransportPolicy`: how the connections of workloads are carried, and which of them the mesh leaves alone.
//!
//! For all workloads of the mesh, of a namespace, or for those of a namespace with certain labels.
//! Not here: which of several policies holds for a workload (mesh-core's compile).

use std::ops::RangeInclusive;

use serde::Serialize;

use super::access_log::AccessLog;
use super::authorization_policy::{Cidr, Selector};
use super::egress::Egress;
use super::mtls::Mtls;
use crate::error::{ApiError, Reason};
use crate::name::Form;
use crate::walk::{At, distinct};

/// The namespace whose policies may be for the whole mesh. Who may write there rules everybody.
pub const ROOT_NAMESPACE: &str = "nodemesh";
/// Most ports, networks or interfaces of an exclusion.
const MAX_EXCLUDED: usize = 64;
/// Accepted numbers of connections through the proxy.
const CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;
/// Accepted numbers of connections that wait for the proxy: the kernel keeps a record of each.
const PENDING: RangeInclusive<u64> = 1..=16_384;
/// A network interface, as the kernel takes it.
const INTERFACE: Form = Form {
    holds: |text| {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
        (1..=15).contains(&text.len()) && text.bytes().all(plain) && text != "." && text != ".."
    },
    accepted: "the name of a network interface: 1..=15 visible ASCII characters without / and :",
};

/// What a `TransportPolicy` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TransportPolicySpec {
    /// Whom it is for.
    pub scope: PolicyScope,
    /// Workloads of its namespace that it is for; empty: all.
    #[serde(skip_serializing_if = "Selector::is_empty")]
    pub selector: Selector,
    /// How connections are encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// What becomes of datagrams that nobody asked for; `None`: another policy says, else they are let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<UdpMode>,
    /// What the mesh leaves alone.
    #[serde(skip_serializing_if = "Exclude::is_empty")]
    pub exclude: Exclude,
    /// What a workload may use of the agent.
    #[serde(skip_serializing_if = "WorkloadBudget::is_empty")]
    pub budget: WorkloadBudget,
    /// Bytes between a workload and the agent go past TCP, where the node's kernel can do it; `None`: another
    /// policy says, else they don't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub splice: Option<bool>,
    /// What workloads may open to the outside; `None`: another policy or the mesh says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Which requests are written down; `None`: another policy says, else none are.
    #[serde(rename = "accessLog", skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// Whom a policy is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyScope {
    /// Workloads of its namespace.
    #[default]
    Namespace,
    /// Every workload of the mesh.
    Mesh,
}

/// What becomes of datagrams that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum UdpMode {
    /// They reach the application.
    Allow,
    /// They are dropped.
    Deny,
}

/// What the mesh leaves alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exclude {
    /// Of what the workload opens; `None`: another policy says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Exclusions>,
    /// Of what comes to it; `None`: another policy says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<Exclusions>,
}

/// What is left alone in one direction: whatever one of these names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exclusions {
    /// Ports that are asked for (out), or the workload's own (in).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Addresses that are asked for (out), or those of the caller (in).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<Cidr>,
    /// Interfaces that the socket is bound to (out), or that the packet arrives at (in).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

/// What a workload may use of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkloadBudget {
    /// Connections through the proxy at once; `None`: another policy or the agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Of them those that wait for the proxy; `None`: another policy or the agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<u16>,
}

impl Exclude {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl WorkloadBudget {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl TransportPolicySpec {
    pub(super) fn read(at: &At<'_>, namespace: &str) -> Result<Self, ApiError> {
        let known =
            ["scope", "selector", "mtls", "udp", "exclude", "budget", "splice", "egress", "accessLog"];
        let fields = at.object(&known, &["targetRefs"])?;
        let scope = fields.read("scope", |at| read_scope(&at, namespace))?.unwrap_or_default();
        let selector = fields.read("selector", |at| Selector::read(&at))?.unwrap_or_default();
        if scope == PolicyScope::Mesh
            && !selector.is_empty()
            && let Some(at) = fields.get("selector")
        {
            return Err(at.refuse(Reason::Conflict, "none with scope mesh, which is for every workload"));
        }
        Ok(Self {
            scope,
            selector,
            mtls: fields.read("mtls", |at| Mtls::read(&at))?,
            udp: fields
                .read("udp", |at| at.one_of(&[("allow", UdpMode::Allow), ("deny", UdpMode::Deny)], &[]))?,
            exclude: fields.read("exclude", |at| Exclude::read(&at))?.unwrap_or_default(),
            budget: fields.read("budget", |at| WorkloadBudget::read(&at))?.unwrap_or_default(),
            splice: fields.read("splice", |at| at.boolean())?,
            egress: fields.read("egress", |at| Egress::read(&at))?,
            access_log: fields.read("accessLog", |at| AccessLog::read(&at))?,
        })
    }
}

fn read_scope(at: &At<'_>, namespace: &str) -> Result<PolicyScope, ApiError> {
    let scope = at.one_of(&[("namespace", PolicyScope::Namespace), ("mesh", PolicyScope::Mesh)], &[])?;
    if scope == PolicyScope::Mesh && namespace != ROOT_NAMESPACE {
        let accepted = format!("namespace; mesh only in the namespace {ROOT_NAMESPACE}");
        return Err(at.refuse(Reason::OutOfRange, accepted));
    }
    Ok(scope)
}

impl Exclude {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["outbound", "inbound"], &[])?;
        Ok(Self {
            outbound: fields.read("outbound", |at| Exclusions::read(&at))?,
            inbound: fields.read("inbound", |at| Exclusions::read(&at))?,
        })
    }
}

impl Exclusions {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["ports", "cidrs", "interfaces"], &[])?;
        let cidr = "a network such as 10.0.0.0/8 or fd00::/8 with zeros behind its length, or an address";
        let lengths = 0..=MAX_EXCLUDED;
        let exclusions = Self {
            ports: fields.each("ports", lengths.clone(), |at| at.port())?,
            cidrs: fields.each("cidrs", lengths.clone(), |at| at.parsed(cidr, Cidr::parse))?,
            interfaces: fields.each("interfaces", lengths, |at| at.checked(&INTERFACE))?,
        };
        let place = |field: &'static str, i: usize| {
            (format!("{}.{field}[{i}]", at.path()), serde_json::Value::from(field))
        };
        distinct(&exclusions.ports, |i| place("ports", i), "ports that differ")?;
        distinct(&exclusions.cidrs, |i| place("cidrs", i), "networks that differ")?;
        distinct(&exclusions.interfaces, |i| place("interfaces", i), "interfaces that differ")?;
        Ok(exclusions)
    }
}

impl WorkloadBudget {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["connections", "pending"], &[])?;
        Ok(Self {
            connections: fields.read("connections", |at| at.integer(CONNECTIONS).map(|n| n as u32))?,
            pending: fields.read("pending", |at| at.integer(PENDING).map(|n| n as u16))?,
        })
    }
}
