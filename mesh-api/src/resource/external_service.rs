//! `ExternalService`: names or addresses outside of the mesh, under a virtual address of the mesh.
//!
//! All of its host names are names of one and the same service: whoever asks for one of them may be led to what
//! another one resolves to.
//! Not here: allocation of virtual addresses (mesh-registry), resolving and TLS (mesh-agent).

use std::net::IpAddr;

use serde::Serialize;

use super::service::{Inbound, Protocol, ServicePort, ServiceSpec, address};
use crate::error::{ApiError, Reason};
use crate::name::{Form, LABEL, is_subdomain};
use crate::walk::{At, Fields, distinct};

/// Most host names.
const MAX_HOSTS: usize = 16;
/// Most addresses.
const MAX_ADDRESSES: usize = 64;
/// Most ports.
const MAX_PORTS: usize = 64;
/// Most names that a certificate may be for.
const MAX_NAMES: usize = 16;
/// Longest text of authorities, bytes.
const MAX_BUNDLE: usize = 256 << 10;

/// A host name outside of the mesh.
const HOST: Form = Form {
    accepted: "a lower-case host name such as api.example.com: exact (no wildcard), no address, not below .mesh or \
               .localhost",
    holds: is_host,
};
/// What a certificate may be for.
const CERTIFICATE_NAME: Form =
    Form { accepted: "a DNS name such as api.example.com, or an address", holds: is_certificate_name };
/// A file on the nodes.
const FILE: Form = Form {
    accepted: "the absolute path of a file on the nodes",
    holds: |text| {
        text.len() <= 4096 && text.starts_with('/') && !text.split('/').any(|part| part == "..") && {
            text.bytes().all(|b| !b.is_ascii_control())
        }
    },
};
/// A protocol inside TLS.
const ALPN: Form = Form {
    accepted: "the name of a protocol: 1..=255 visible ASCII characters",
    holds: |text| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()),
};

/// What an `ExternalService` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExternalServiceSpec {
    /// Names that workloads ask resolvers for, and what is resolved where there are no addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Where it is; none: where its names resolve to, on each node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Ports; at least one.
    pub ports: Vec<ExternalPort>,
}

/// One port of an external service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPort {
    /// Name, unique in the service; may be empty if it is the only port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Number at the virtual address, unique in the service.
    pub port: u16,
    /// Number at its own addresses.
    pub target_port: u16,
    /// What workloads speak: tcp, http or tls.
    pub protocol: Protocol,
    /// The agent speaks TLS with it, and workloads do not; `None`: what workloads say goes as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsOrigination>,
}

/// How the agent speaks TLS with an external service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsOrigination {
    /// Always `originate`.
    mode: Originate,
    /// The name that is asked for, and that the certificate is for unless `subject_alt_names` says otherwise; `None`:
    /// the first host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// Whom to believe, PEM; neither this nor `ca_file`: the node's own authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// The same, in a file on each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The certificate is for one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Whether the workload shows who it is.
    pub client_certificate: ClientCertificate,
    /// Protocols that are offered; none: `http/1.1` on ports of http, nothing on others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
}

/// Who speaks TLS: the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Originate {
    #[default]
    Originate,
}

/// What a workload shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ClientCertificate {
    /// Nothing.
    #[default]
    None,
    /// Its certificate of the mesh, if it is asked for one.
    Mesh,
}

impl ExternalServiceSpec {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["hosts", "addresses", "ports"], &["exportTo", "namespaces", "vips"])?;
        let hosts = fields.each("hosts", 0..=MAX_HOSTS, |at| at.checked(&HOST))?;
        distinct(&hosts, |i| (format!("{}.hosts[{i}]", at.path()), hosts[i].clone().into()), "once")?;
        let addresses = fields.each("addresses", 0..=MAX_ADDRESSES, |at| address(&at))?;
        let shown = |i: usize| (format!("{}.addresses[{i}]", at.path()), addresses[i].to_string().into());
        distinct(&addresses, shown, "once")?;
        if hosts.is_empty() && addresses.is_empty() {
            fields.need("hosts", "a list of host names, or addresses instead")?;
        }
        let entries = fields.need("ports", "a list of 1 or more ports")?.list(1..=MAX_PORTS)?;
        let several = entries.len() > 1;
        let read = |at| ExternalPort::read(&at, several, !hosts.is_empty());
        let ports: Vec<ExternalPort> = entries.into_iter().map(read).collect::<Result<_, _>>()?;
        let place = |i: usize, field: &str| format!("{}.ports[{i}].{field}", at.path());
        let numbers = ports.iter().map(|port| port.port);
        distinct(numbers, |i| (place(i, "port"), ports[i].port.into()), "a number of its own")?;
        let names = ports.iter().map(|port| &port.name);
        distinct(names, |i| (place(i, "name"), ports[i].name.clone().into()), "a name of its own")?;
        Ok(Self { hosts, addresses, ports })
    }

    /// Its ports as those of a service: what routes and policies that refer to it look at.
    pub fn service(&self) -> ServiceSpec {
        let port = |port: &ExternalPort| ServicePort {
            name: port.name.clone(),
            port: port.port,
            target_port: port.target_port,
            protocol: port.protocol,
            inbound: Inbound::Kernel,
            health_check: None,
        };
        ServiceSpec { ports: self.ports.iter().map(port).collect(), ..ServiceSpec::default() }
    }
}

impl ExternalPort {
    fn read(at: &At<'_>, several: bool, named: bool) -> Result<Self, ApiError> {
        let fields = at.object(&["name", "port", "targetPort", "protocol", "tls"], &["appProtocol"])?;
        let name = match fields.get("name") {
            Some(at) => at.checked(&LABEL)?,
            None if several => fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            None => String::new(),
        };
        let port = fields.need("port", "1..=65535")?.port()?;
        let target_port = fields.read("targetPort", |at| at.port())?.unwrap_or(port);
        let protocol = fields.read("protocol", |at| {
            let words = [("tcp", Protocol::Tcp), ("http", Protocol::Http), ("tls", Protocol::Tls)];
            at.one_of(&words, &["udp", "http2", "grpc", "auto"])
        })?;
        let protocol = protocol.unwrap_or_default();
        let tls = fields.read("tls", |at| TlsOrigination::read(&at, protocol, named))?;
        Ok(Self { name, port, target_port, protocol, tls })
    }
}

impl TlsOrigination {
    fn read(at: &At<'_>, protocol: Protocol, named: bool) -> Result<Self, ApiError> {
        if protocol == Protocol::Tls {
            return Err(
                at.refuse(Reason::Conflict, "none with protocol tls, which workloads speak themselves")
            );
        }
        let fields = at.object(
            &["mode", "sni", "caBundle", "caFile", "subjectAltNames", "clientCertificate", "alpn"],
            &["minVersion", "certificateFile", "keyFile"],
        )?;
        let mode = fields.need("mode", "originate")?.one_of(&[("originate", Originate::Originate)], &[])?;
        let sni = fields.read("sni", |at| at.checked(&HOST))?;
        let ca_bundle = fields.read("caBundle", |at| bundle(&at))?;
        let ca_file = fields.read("caFile", |at| at.checked(&FILE))?;
        if let (true, Some(at)) = (ca_bundle.is_some(), fields.get("caFile")) {
            return Err(at.refuse(Reason::Conflict, "none beside caBundle"));
        }
        let subject_alt_names =
            fields.each("subjectAltNames", 0..=MAX_NAMES, |at| at.checked(&CERTIFICATE_NAME))?;
        if !named && sni.is_none() && subject_alt_names.is_empty() {
            fields.need(
                "sni",
                "a host name, where the service has no hosts and no subjectAltNames are given",
            )?;
        }
        let shows = [("none", ClientCertificate::None), ("mesh", ClientCertificate::Mesh)];
        let client_certificate = fields.read("clientCertificate", |at| at.one_of(&shows, &[]))?;
        Ok(Self {
            mode,
            sni,
            ca_bundle,
            ca_file,
            subject_alt_names,
            client_certificate: client_certificate.unwrap_or_default(),
            alpn: alpn(&fields, protocol)?,
        })
    }
}

fn alpn(fields: &Fields<'_>, protocol: Protocol) -> Result<Vec<String>, ApiError> {
    fields.each("alpn", 0..=8, |at| {
        let name = at.checked(&ALPN)?;
        if protocol == Protocol::Http && name != "http/1.1" {
            return Err(at.refuse(Reason::NotBuiltYet, "http/1.1 on a port of protocol http"));
        }
        Ok(name)
    })
}

/// PEM with certificates and nothing else.
fn bundle(at: &At<'_>) -> Result<String, ApiError> {
    let accepted = "certificates in PEM, and nothing else, of at most 256 KiB";
    at.parsed(accepted, |text| {
        let blocks = pem::parse_many(text).ok()?;
        let whole = text.len() <= MAX_BUNDLE && !blocks.is_empty();
        (whole && blocks.iter().all(|block| block.tag() == "CERTIFICATE")).then(|| text.to_owned())
    })
}

fn is_host(text: &str) -> bool {
    let own =
        |domain: &str| text == domain || text.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    is_subdomain(text) && text.parse::<IpAddr>().is_err() && !own("mesh") && !own("localhost")
}

fn is_certificate_name(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || is_subdomain(text)
}
