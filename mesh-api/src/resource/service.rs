//! `Service`: a name for a set of workloads: virtual addresses, ports, which workloads.
//!
//! Not here: endpoints (workloads carry them), allocation of virtual addresses (mesh-registry).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::dns::Dns;
use super::envelope::labels;
use super::health::{HealthCheck, Recovery};
use crate::error::{ApiError, Reason};
use crate::name::LABEL;
use crate::walk::{At, distinct};

/// Most given virtual addresses.
const MAX_VIPS: usize = 16;
/// Most ports: all that there are; the request's size ends it earlier.
const MAX_PORTS: usize = 65_535;

/// What is accepted where a check would connect to a port of UDP.
const NO_TCP: &str = "command, or http, grpc or tcp with a port of its own: checks do not speak UDP";

/// What a `Service` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// Given virtual addresses; none: allocated, one of each family, unless headless.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// No virtual address at all: clients dial the workloads' own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub headless: bool,
    /// Labels that a workload of the same namespace must have to serve it; empty: only workloads that name it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    /// Ports; at least one.
    pub ports: Vec<ServicePort>,
    /// How its workloads are asked whether they are well; `None`: nobody asks, but where a port says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What follows where one is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// What is said of its names; `None`: as the mesh says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name, unique in the service; may be empty if it is the only port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Number, unique in the service among the ports of UDP, and among the others.
    pub port: u16,
    /// Port of the selected workloads.
    pub target_port: u16,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Whether the agent takes inbound connections at the endpoints.
    pub inbound: Inbound,
    /// In place of the service's, for this port alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// Opaque bytes.
    #[default]
    Tcp,
    /// HTTP/1.1 in plain text.
    Http,
    /// TLS, which is not opened.
    Tls,
    /// Datagrams.
    Udp,
    /// What clients begin with: HTTP, or opaque bytes.
    Auto,
}

impl Protocol {
    /// Datagrams? Everything else goes over TCP.
    pub fn is_udp(self) -> bool {
        self == Self::Udp
    }
}

/// How inbound connections reach the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Inbound {
    /// Straight.
    #[default]
    Kernel,
    /// Through the node's agent.
    Proxy,
}

impl ServiceSpec {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(
            &["vips", "headless", "selector", "ports", "healthCheck", "recovery", "dns"],
            &["affinity", "sessionAffinity", "endpoints"],
        )?;
        let vips = fields.each("vips", 0..=MAX_VIPS, |at| address(&at))?;
        distinct(&vips, |i| (format!("{}.vips[{i}]", at.path()), vips[i].to_string().into()), "once")?;
        let headless = fields.read("headless", |at| at.boolean())?.unwrap_or(false);
        if let (true, false, Some(vips)) = (headless, vips.is_empty(), fields.get("vips")) {
            return Err(vips.refuse(Reason::Conflict, "none, or headless: false"));
        }
        let selector = fields.read("selector", |at| labels(&at))?.unwrap_or_default();
        let entries = fields.need("ports", "a list of 1 or more ports")?.list(1..=MAX_PORTS)?;
        let several = entries.len() > 1;
        let ports: Vec<ServicePort> =
            entries.into_iter().map(|at| ServicePort::read(&at, several)).collect::<Result<_, _>>()?;
        let place = |i: usize, field: &str| format!("{}.ports[{i}].{field}", at.path());
        // DNS answers on one port over both.
        let numbers = ports.iter().map(|port| (port.port, port.protocol.is_udp()));
        distinct(
            numbers,
            |i| (place(i, "port"), ports[i].port.into()),
            "a number of its own among the ports of UDP, or among the others",
        )?;
        let names = ports.iter().map(|port| &port.name);
        distinct(names, |i| (place(i, "name"), ports[i].name.clone().into()), "a name of its own")?;
        let health_check = fields.read("healthCheck", |at| {
            let check = HealthCheck::read(&at)?;
            if check.dials_target() && ports.iter().all(|port| port.protocol.is_udp()) {
                return Err(at.refuse(Reason::Conflict, NO_TCP));
            }
            Ok(check)
        })?;
        let recovery = fields.read("recovery", |at| {
            if health_check.is_none() && ports.iter().all(|port| port.health_check.is_none()) {
                return Err(at.refuse(Reason::Conflict, "recovery together with a healthCheck"));
            }
            Recovery::read(&at)
        })?;
        let dns = fields.read("dns", |at| Dns::read(&at))?;
        Ok(Self { vips, headless, selector, ports, health_check, recovery, dns })
    }

    /// The port of this name; of no name: the only port.
    pub fn port_by_name(&self, name: &str) -> Option<&ServicePort> {
        match (name, &self.ports[..]) {
            ("", [only]) => Some(only),
            ("", _) => None,
            _ => self.ports.iter().find(|port| port.name == name),
        }
    }
}

impl ServicePort {
    fn read(at: &At<'_>, several: bool) -> Result<Self, ApiError> {
        let fields = at.object(
            &["name", "port", "targetPort", "protocol", "inbound", "healthCheck"],
            &["appProtocol", "nodePort", "dependencies"],
        )?;
        let name = match fields.get("name") {
            Some(at) => at.checked(&LABEL)?,
            None if several => {
                return Err(fields
                    .need("name", LABEL.accepted)
                    .err()
                    .unwrap_or_else(|| at.refuse(Reason::MissingField, LABEL.accepted)));
            }
            None => String::new(),
        };
        let port = fields.need("port", "1..=65535")?.port()?;
        let target_port = fields.read("targetPort", |at| at.port())?.unwrap_or(port);
        let protocol = fields.read("protocol", |at| {
            let words = [
                ("tcp", Protocol::Tcp),
                ("http", Protocol::Http),
                ("tls", Protocol::Tls),
                ("udp", Protocol::Udp),
                ("auto", Protocol::Auto),
            ];
            at.one_of(&words, &["http2", "grpc"])
        })?;
        let protocol = protocol.unwrap_or_default();
        let inbound = fields.read("inbound", |at| {
            at.one_of(&[("kernel", Inbound::Kernel), ("proxy", Inbound::Proxy)], &[])
        })?;
        if let (true, Some(Inbound::Proxy), Some(at)) = (protocol.is_udp(), inbound, fields.get("inbound")) {
            return Err(at.refuse(Reason::Conflict, "kernel: the proxy takes no UDP"));
        }
        let health_check = fields.read("healthCheck", |at| {
            let check = HealthCheck::read(&at)?;
            if check.dials_target() && protocol.is_udp() {
                return Err(at.refuse(Reason::Conflict, NO_TCP));
            }
            Ok(check)
        })?;
        let inbound = inbound.unwrap_or_default();
        Ok(Self { name, port, target_port, protocol, inbound, health_check })
    }
}

/// An address that something can be reached at.
pub(super) fn address(at: &At<'_>) -> Result<IpAddr, ApiError> {
    let accepted = "an IPv4 or IPv6 unicast address that is not loopback, link-local or v4-mapped";
    at.parsed(accepted, |text| text.parse().ok().filter(is_unicast))
}

fn is_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let odd = v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_link_local();
            !odd && !v4.is_broadcast() && v4.octets()[0] != 0
        }
        IpAddr::V6(v6) => {
            let odd = v6.is_unspecified() || v6.is_loopback() || v6.is_multicast();
            !odd && !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none()
        }
    }
}
