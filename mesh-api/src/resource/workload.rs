//! `Workload`: one running instance: where it is reached, where it runs, who it is, what it serves.
//!
//! Not here: leases (mesh-registry), numbers of ports behind names (the registry resolves them).

use std::net::IpAddr;

use serde::Serialize;

use super::locality::{Locality, PRIORITY_MAX};
use super::service::address;
use crate::error::ApiError;
use crate::name::{LABEL, SUBDOMAIN};
use crate::walk::{At, distinct};

/// Most addresses of a workload.
const MAX_ADDRESSES: usize = 16;
/// Most memberships that one workload names.
const MAX_MEMBERSHIPS: usize = 1024;
/// Largest weight of an endpoint.
const MAX_WEIGHT: u64 = 65_535;

/// What a `Workload` says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSpec {
    /// Where it is reached; at least one.
    pub addresses: Vec<IpAddr>,
    /// Node that it runs on; empty: outside any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Service account within the namespace: with it, its identity.
    pub service_account: String,
    /// It shares its addresses with its host and other workloads: only the ports that it serves are its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// It is behind an agent that takes HBONE tunnels for it, at port 15008 of its addresses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hbone: bool,
    /// Where it runs; `None`: where its node does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// In every service: those of a higher number are sent to when those of lower ones are too weak.
    #[serde(skip_serializing_if = "is_first")]
    pub priority: u8,
    /// Weight in every service that selects it; 0 takes no new connections.
    pub weight: u16,
    /// Services that it names itself, beside those that select it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Membership>,
}

/// "I serve this port of this service, there."
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Service of the same namespace.
    pub service: String,
    /// The service port's name; empty: its only port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub port_name: String,
    /// Where the workload listens; `None`: the service port's own target port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Weight there; `None`: the workload's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_first(priority: &u8) -> bool {
    *priority == 0
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            node: String::new(),
            service_account: "default".to_owned(),
            host_network: false,
            hbone: false,
            locality: None,
            priority: 0,
            weight: 1,
            services: Vec::new(),
        }
    }
}

impl WorkloadSpec {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(
            &[
                "addresses",
                "node",
                "serviceAccount",
                "hostNetwork",
                "hbone",
                "locality",
                "priority",
                "weight",
                "services",
            ],
            &["ports", "health", "network"],
        )?;
        let accepted = "a list of 1..=16 IP addresses";
        let addresses = fields
            .need("addresses", accepted)?
            .list(1..=MAX_ADDRESSES)?
            .iter()
            .map(address)
            .collect::<Result<Vec<_>, _>>()?;
        let place = |i: usize, list: &str| format!("{}.{list}[{i}]", at.path());
        distinct(&addresses, |i| (place(i, "addresses"), addresses[i].to_string().into()), "once")?;
        let services = fields.each("services", 0..=MAX_MEMBERSHIPS, |at| Membership::read(&at))?;
        let names = services.iter().map(|one| (&one.service, &one.port_name, one.target_port));
        distinct(
            names,
            |i| (place(i, "services"), services[i].service.clone().into()),
            "each service port and target port once",
        )?;
        let default = Self::default();
        Ok(Self {
            addresses,
            node: fields.read("node", |at| at.checked(&SUBDOMAIN))?.unwrap_or_default(),
            service_account: fields
                .read("serviceAccount", |at| at.checked(&SUBDOMAIN))?
                .unwrap_or(default.service_account),
            host_network: fields.read("hostNetwork", |at| at.boolean())?.unwrap_or_default(),
            hbone: fields.read("hbone", |at| at.boolean())?.unwrap_or_default(),
            locality: fields.read("locality", |at| Locality::read(&at))?,
            priority: fields
                .read("priority", |at| at.integer(0..=PRIORITY_MAX.into()))?
                .map_or(0, |n| n as u8),
            weight: fields.read("weight", |at| weight(&at))?.unwrap_or(default.weight),
            services,
        })
    }
}

impl Membership {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at
            .object(&["service", "portName", "targetPort", "weight"], &["namespace", "health", "priority"])?;
        Ok(Self {
            service: fields.need("service", LABEL.accepted)?.checked(&LABEL)?,
            port_name: fields.read("portName", |at| at.checked(&LABEL))?.unwrap_or_default(),
            target_port: fields.read("targetPort", |at| at.port())?,
            weight: fields.read("weight", |at| weight(&at))?,
        })
    }
}

fn weight(at: &At<'_>) -> Result<u16, ApiError> {
    at.integer(0..=MAX_WEIGHT).map(|n| n as u16)
}
