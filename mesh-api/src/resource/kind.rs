//! Kinds and keys: how an object is named, in YAML, in URLs, in the store and on the wire.
//!
//! Not here: what a kind holds.

use std::fmt;

use serde_json::Value;

use crate::error::{ApiError, Reason};
use crate::walk::Fields;

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `Mesh`
    Mesh,
    /// `Service`
    Service,
    /// `Workload`
    Workload,
    /// `HTTPRoute`
    HttpRoute,
    /// `GRPCRoute`
    GrpcRoute,
    /// `TLSRoute`
    TlsRoute,
    /// `TCPRoute`
    TcpRoute,
    /// `UDPRoute`
    UdpRoute,
    /// `TrafficPolicy`
    TrafficPolicy,
    /// `AuthorizationPolicy`
    AuthorizationPolicy,
    /// `TransportPolicy`
    TransportPolicy,
    /// `ExternalService`
    ExternalService,
    /// `EnvoyResources`
    EnvoyResources,
}

/// Planned kinds.
const UNBUILT: &[&str] = &["RateLimitPolicy", "Telemetry"];

impl Kind {
    /// All of them, in the order in which a set of objects is best written.
    pub const ALL: [Self; 13] = [
        Self::Mesh,
        Self::Service,
        Self::ExternalService,
        Self::Workload,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
        Self::TransportPolicy,
        Self::EnvoyResources,
    ];

    /// As `kind:` says it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "Mesh",
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::UdpRoute => "UDPRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::TransportPolicy => "TransportPolicy",
            Self::ExternalService => "ExternalService",
            Self::EnvoyResources => "EnvoyResources",
        }
    }

    /// As URLs and store keys say it.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Service => "services",
            Self::Workload => "workloads",
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::TlsRoute => "tlsroutes",
            Self::TcpRoute => "tcproutes",
            Self::UdpRoute => "udproutes",
            Self::TrafficPolicy => "trafficpolicies",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::TransportPolicy => "transportpolicies",
            Self::ExternalService => "externalservices",
            Self::EnvoyResources => "envoyresources",
        }
    }

    /// As `apiVersion:` says it.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::HttpRoute | Self::GrpcRoute | Self::TlsRoute | Self::TcpRoute | Self::UdpRoute => {
                "gateway.networking.k8s.io/v1"
            }
            _ => "nodemesh.io/v1",
        }
    }

    /// Type URL of the wire resource.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Mesh => "type.googleapis.com/nodemesh.v1.Mesh",
            Self::Service => "type.googleapis.com/nodemesh.v1.Service",
            Self::Workload => "type.googleapis.com/nodemesh.v1.Workload",
            Self::HttpRoute => "type.googleapis.com/nodemesh.v1.HttpRoute",
            Self::GrpcRoute => "type.googleapis.com/nodemesh.v1.GrpcRoute",
            Self::TlsRoute => "type.googleapis.com/nodemesh.v1.TlsRoute",
            Self::TcpRoute => "type.googleapis.com/nodemesh.v1.TcpRoute",
            Self::UdpRoute => "type.googleapis.com/nodemesh.v1.UdpRoute",
            Self::TrafficPolicy => "type.googleapis.com/nodemesh.v1.TrafficPolicy",
            Self::AuthorizationPolicy => "type.googleapis.com/nodemesh.v1.AuthorizationPolicy",
            Self::TransportPolicy => "type.googleapis.com/nodemesh.v1.TransportPolicy",
            Self::ExternalService => "type.googleapis.com/nodemesh.v1.ExternalService",
            Self::EnvoyResources => "type.googleapis.com/nodemesh.v1.EnvoyResources",
        }
    }

    /// Whether objects live in a namespace.
    pub const fn namespaced(self) -> bool {
        !matches!(self, Self::Mesh)
    }

    /// Whether agents are told of it.
    pub const fn is_for_agents(self) -> bool {
        !matches!(self, Self::EnvoyResources)
    }

    /// The kind of this URL part.
    pub fn from_plural(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == text)
    }

    /// The kind of this type URL.
    pub fn from_type_url(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == text)
    }

    /// The kind that somebody types: any case, singular or plural.
    pub fn from_word(text: &str) -> Option<Self> {
        let word = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| kind.plural() == word || kind.name().to_ascii_lowercase() == word)
    }

    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let names = Self::ALL.map(Self::name).join(", ");
        let at = fields.need("kind", &names)?;
        let text = at.text(&names)?;
        let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == text) else {
            let reason = if UNBUILT.contains(&text) { Reason::NotBuiltYet } else { Reason::UnknownKind };
            return Err(at.refuse(reason, names));
        };
        let version = fields.need("apiVersion", kind.api_version())?;
        if version.text(kind.api_version())? != kind.api_version() {
            return Err(version.refuse(Reason::BadFormat, kind.api_version()));
        }
        Ok(kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kind, namespace and name: what an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for kinds without.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// From its parts; the namespace of a kind without any is dropped.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The one `Mesh`.
    pub fn mesh() -> Self {
        Self::new(Kind::Mesh, "", "mesh")
    }

    /// xDS resource name: `<namespace>/<name>`, or the name alone for kinds without a namespace.
    pub fn wire_name(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// The error of an object that is not there.
    pub fn not_found(&self) -> ApiError {
        let value = Value::from(self.to_string());
        ApiError::new(Reason::NotFound, "metadata.name", value, "the name of an existing object")
            .saying(format!("{self} does not exist"))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.wire_name())
    }
}
