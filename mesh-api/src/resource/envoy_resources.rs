//! `EnvoyResources`: what Envoys of one node type are given: a gateway into the mesh that is generated from the
//! registry, and resources as Envoy's own API writes them.
//!
//! The node type is a node's id up to its first `-`. Several objects may be for one type; what they hold adds up.
//! Raw resources are looked at here only so far that they have names and no private keys in them: a key in the store
//! would be everybody's who may read.
//! Not here: whether Envoy's API knows their fields (mesh-envoy), what is made of a gateway (mesh-envoy).

use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use crate::error::{ApiError, Reason};
use crate::name::{Form, HOSTNAME, LABEL};
use crate::walk::{At, distinct};

/// What an `EnvoyResources` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvoyResourcesSpec {
    /// For which nodes; `None`: those of the type that the object's name is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_type: Option<String>,
    /// A listener with the routes of services of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<EnvoyGateway>,
    /// `envoy.config.listener.v3.Listener`s.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Value>,
    /// `envoy.config.cluster.v3.Cluster`s.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<Value>,
    /// `envoy.config.route.v3.RouteConfiguration`s.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Value>,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`s.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Value>,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret`s.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Value>,
}

/// A way into the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvoyGateway {
    /// Where it listens; `None`: every address of IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Its certificate; `None`: it speaks plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
    /// What it shows; at least one.
    pub services: Vec<GatewayService>,
}

/// Files of Envoy's own machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayTls {
    /// PEM, the chain.
    pub certificate_file: String,
    /// PEM.
    pub key_file: String,
}

/// One port of a service of the mesh, shown to the outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayService {
    /// Its namespace; `None`: the object's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// Under which host names; none: `<name>.<namespace>.mesh`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// Type of a node: what its id begins with.
pub const NODE_TYPE: Form = Form {
    accepted: "a node type: 1..=63 of letters, digits, '_' and '.'; a node's id up to its first '-'",
    holds: is_node_type,
};

/// Whether nodes can be of this type.
pub fn is_node_type(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
        && text.bytes().any(|b| b != b'.')
}

/// The type of a node of this id.
pub fn node_type_of(id: &str) -> &str {
    id.split('-').next().unwrap_or_default()
}

/// Most raw resources of one type.
const RAW_MAX: usize = 1024;
/// Most services of a gateway.
const SERVICES_MAX: usize = 1024;
/// Most hosts of a service of a gateway.
const HOSTS_MAX: usize = 64;
/// Fields of Envoy's API that hold what nobody else should know.
const SECRET: [&str; 6] = ["private_key", "privateKey", "pkcs12", "password", "keys", "secret"];
const INLINE: [&str; 4] = ["inline_string", "inlineString", "inline_bytes", "inlineBytes"];

impl EnvoyResourcesSpec {
    pub(super) fn read(at: &At<'_>, name: &str) -> Result<Self, ApiError> {
        let known = ["nodeType", "gateway", "listeners", "clusters", "routes", "endpoints", "secrets"];
        let fields = at.object(&known, &["runtimes", "scopedRoutes", "extensions"])?;
        let node_type = fields.read("nodeType", |at| at.checked(&NODE_TYPE))?;
        if node_type.is_none() && !is_node_type(name) {
            let error = ApiError::new(Reason::BadFormat, "metadata.name", name.into(), NODE_TYPE.accepted);
            return Err(error.saying(format!(
                "metadata.name: \"{name}\" is no node type; rename it, or give spec.nodeType: {}",
                NODE_TYPE.accepted
            )));
        }
        let raw = |field: &str, name: [&str; 2]| match fields.get(field) {
            Some(at) => raw(&at, name),
            None => Ok(Vec::new()),
        };
        Ok(Self {
            node_type,
            gateway: fields.read("gateway", |at| EnvoyGateway::read(&at))?,
            listeners: raw("listeners", ["name", "name"])?,
            clusters: raw("clusters", ["name", "name"])?,
            routes: raw("routes", ["name", "name"])?,
            endpoints: raw("endpoints", ["cluster_name", "clusterName"])?,
            secrets: raw("secrets", ["name", "name"])?,
        })
    }
}

/// Resources of one type: objects with names, each its own.
fn raw(at: &At<'_>, name: [&str; 2]) -> Result<Vec<Value>, ApiError> {
    let entries = at.list(0..=RAW_MAX)?;
    let mut names = Vec::with_capacity(entries.len());
    for at in &entries {
        let Value::Object(map) = at.value() else {
            return Err(at.refuse(Reason::WrongType, "an object, as Envoy's API writes it in JSON"));
        };
        let text = name.iter().find_map(|name| map.get(*name)).and_then(Value::as_str).unwrap_or_default();
        if !(1..=1024).contains(&text.len()) {
            let path = format!("{}.{}", at.path(), name[0]);
            return Err(ApiError::new(Reason::MissingField, path, Value::Null, "1..=1024 characters"));
        }
        names.push(text);
        no_keys(at.value(), at.path(), false)?;
    }
    let place = |i: usize| (format!("{}[{i}].{}", at.path(), name[0]), names[i].into());
    distinct(&names, place, "each name once")?;
    Ok(entries.iter().map(|at| at.value().clone()).collect())
}

/// Refuses private keys and passwords that stand in the text itself.
fn no_keys(value: &Value, path: &str, secret: bool) -> Result<(), ApiError> {
    match value {
        Value::Object(map) => map.iter().try_for_each(|(field, inner)| {
            let path = format!("{path}.{field}");
            if secret && INLINE.contains(&field.as_str()) {
                let accepted = "filename or environment_variable: who may read the store would know the key";
                return Err(ApiError::new(Reason::BadFormat, path, "(not shown)".into(), accepted));
            }
            no_keys(inner, &path, secret || SECRET.contains(&field.as_str()))
        }),
        Value::Array(list) => {
            list.iter().enumerate().try_for_each(|(i, inner)| no_keys(inner, &format!("{path}[{i}]"), secret))
        }
        _ => Ok(()),
    }
}

impl EnvoyGateway {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["address", "port", "tls", "services"], &["routes", "http3"])?;
        let services = fields.need("services", "a list of 1..=1024 services")?;
        let gateway = Self {
            address: fields.read("address", |at| at.parsed("an IP address", |text| text.parse().ok()))?,
            port: fields.need("port", "1..=65535")?.port()?,
            tls: fields.read("tls", |at| GatewayTls::read(&at))?,
            services: services
                .list(1..=SERVICES_MAX)?
                .iter()
                .map(GatewayService::read)
                .collect::<Result<_, _>>()?,
        };
        let hosts: Vec<_> = gateway
            .services
            .iter()
            .enumerate()
            .flat_map(|(i, service)| service.hosts.iter().enumerate().map(move |(j, host)| (i, j, host)))
            .collect();
        let place = |n: usize| {
            let (i, j, host) = hosts[n];
            (format!("{}[{i}].hosts[{j}]", services.path()), host.as_str().into())
        };
        distinct(hosts.iter().map(|(_, _, host)| *host), place, "a host that no other service has")?;
        Ok(gateway)
    }
}

impl GatewayTls {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["certificateFile", "keyFile"], &["secret", "clientCa"])?;
        let accepted = "an absolute path on Envoy's machine";
        let file = |field: &str| {
            let holds = |text: &str| (text.starts_with('/') && text.len() <= 4096).then(|| text.to_owned());
            fields.need(field, accepted)?.parsed(accepted, holds)
        };
        Ok(Self { certificate_file: file("certificateFile")?, key_file: file("keyFile")? })
    }
}

impl GatewayService {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["namespace", "name", "port", "hosts"], &[])?;
        let host = |at: At<'_>| {
            let accepted = "\"*\", or a lower-case host name such as shop.example or *.shop.example";
            at.parsed(accepted, |text| (text == "*" || (HOSTNAME.holds)(text)).then(|| text.to_owned()))
        };
        Ok(Self {
            namespace: fields.read("namespace", |at| at.checked(&LABEL))?,
            name: fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            port: fields.need("port", "1..=65535")?.port()?,
            hosts: fields.each("hosts", 0..=HOSTS_MAX, host)?,
        })
    }
}
