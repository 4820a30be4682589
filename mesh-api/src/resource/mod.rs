//! Resources: what people write and what is stored. One type, [`Resource`], whatever the kind.
//!
//! YAML or JSON → `serde_json::Value` → **Resource** → store, registry → `proto::v1` (wire.rs)
//!
//! Parsed, not validated: a [`Resource`] that exists is well-formed. Unknown fields are refused; what is
//! planned but not built is refused by name. Status and the server-set part of the metadata are read back from
//! the store by the same parser; what users send there is overwritten ([`Resource::admitted`]).
//! Not here: whether what is referred to exists (mesh-registry says so in conditions).

mod access_log;
mod affinity;
mod authorization_policy;
mod dns;
mod egress;
mod envelope;
mod envoy_resources;
mod ext_authz;
mod external_service;
mod grpc_route;
mod health;
mod hedge;
mod http_filter;
mod http_match;
mod http_route;
mod jwt;
mod kind;
mod l4_route;
mod locality;
mod mesh;
mod mtls;
mod observed;
mod resilience;
mod service;
mod tls_route;
mod traffic_policy;
mod transport_policy;
mod workload;

pub use access_log::AccessLog;
pub use affinity::{Affinity, AffinityCookie};
pub use authorization_policy::{
    Account, Action, AuthorizationPolicySpec, AuthorizationRule, Cidr, HeaderIs, HeaderTerm, Selector,
    SourceTerms, TargetTerms,
};
pub use dns::Dns;
pub use egress::{Egress, EgressMode};
pub use envelope::{Condition, Metadata, Status};
pub use envoy_resources::{
    EnvoyGateway, EnvoyResourcesSpec, GatewayService, GatewayTls, NODE_TYPE, is_node_type, node_type_of,
};
pub use ext_authz::{ExtAuthz, ExtAuthzService, OnFailure};
pub use external_service::{ClientCertificate, ExternalPort, ExternalServiceSpec, TlsOrigination};
pub use grpc_route::{GrpcMatch, GrpcMethod, GrpcRouteSpec, GrpcRule};
pub use health::{
    Action as RecoveryAction, CommandRef, GrpcProbe, HealthCheck, HttpProbe, Probe, Readmit, Recovery,
    Restart, Statuses, Step, TcpProbe, Webhook,
};
pub use hedge::Hedge;
pub use http_filter::{DirectResponse, Header, HeaderEdits, HttpFilter, Mirror, PathEdit, Redirect, Rewrite};
pub use http_match::{FieldMatch, HttpMatch, MatchKind, PathMatch, REGEX_BYTES};
pub use http_route::{BackendRef, HttpRouteSpec, HttpRule, ParentRef, Retry, Timeouts};
pub use jwt::{ClaimHeader, ClaimTerm, Jwks, JwtProvider, JwtTerms, TokenHeader};
pub use kind::{Key, Kind};
pub use l4_route::{L4RouteSpec, L4Rule};
pub use locality::{Locality, LocalityMode, LocalityPolicy, PRIORITY_MAX, Scope};
pub use mesh::{HttpMode, MeshMtls, MeshSpec, VipPool};
pub use mtls::{Mtls, MtlsMode, PortMtls};
pub use observed::{CheckState, Health, WorkloadHealth};
pub use resilience::{
    BreakerPolicy, BreakerScope, Fault, FaultAbort, FaultDelay, OutlierAnswers, RateBy, RateLimit,
    RequestLimits, SuccessRate,
};
pub use service::{Inbound, Protocol, ServicePort, ServiceSpec};
pub use tls_route::TlsRouteSpec;
pub use traffic_policy::{
    Balancing, ConnectionLimits, OnProxyLoss, OutlierEjection, SlowStart, TargetRef, TrafficPolicySpec,
};
pub use transport_policy::{
    Exclude, Exclusions, PolicyScope, ROOT_NAMESPACE, TransportPolicySpec, UdpMode, WorkloadBudget,
};
pub use workload::{Membership, WorkloadSpec};

use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{ApiError, Reason};
use crate::walk::At;

/// Largest JSON text of one object that callers should read, in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting that callers should read (serde_json's own limit; YAML readers set it).
pub const MAX_DEPTH: usize = 128;
/// Namespace of what names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Names, labels and what the server set.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: Spec,
    /// What was observed or allocated; never written by users.
    pub status: Status,
}

/// What was asked for, by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Spec {
    /// Ports and virtual addresses.
    Service(ServiceSpec),
    /// A running instance.
    Workload(WorkloadSpec),
    /// HTTP requests to a service, by host and path, to weighted backends.
    HttpRoute(HttpRouteSpec),
    /// Calls of gRPC to a service, by method, to weighted backends.
    GrpcRoute(GrpcRouteSpec),
    /// Connections of TLS to a service, by the name that is asked for, to weighted backends.
    TlsRoute(TlsRouteSpec),
    /// Connections to a service, to weighted backends.
    TcpRoute(L4RouteSpec),
    /// UDP sockets that send to a service, to weighted backends.
    UdpRoute(L4RouteSpec),
    /// How traffic to a service is treated.
    TrafficPolicy(TrafficPolicySpec),
    /// Who may connect to workloads.
    AuthorizationPolicy(AuthorizationPolicySpec),
    /// How the connections of workloads are carried.
    TransportPolicy(TransportPolicySpec),
    /// Names or addresses outside of the mesh.
    ExternalService(ExternalServiceSpec),
    /// What Envoys of a node type are given.
    EnvoyResources(Box<EnvoyResourcesSpec>),
    /// Settings of the whole mesh.
    Mesh(MeshSpec),
}

impl Resource {
    /// Reads one object; every refusal names path, value and what is accepted.
    pub fn parse(value: &Value) -> Result<Self, ApiError> {
        let root = At::root(value);
        let fields = root.object(&["apiVersion", "kind", "metadata", "spec", "status"], &[])?;
        let kind = Kind::read(&fields)?;
        let metadata = Metadata::read(&fields.need("metadata", "an object with a name")?, kind)?;
        let spec = match (kind, fields.get("spec")) {
            // Every field of a Mesh has a default.
            (Kind::Mesh, None) => Spec::Mesh(MeshSpec::default()),
            (_, None) => fields.need("spec", "an object").map(|_| Spec::Mesh(MeshSpec::default()))?,
            (Kind::Service, Some(at)) => Spec::Service(ServiceSpec::read(&at)?),
            (Kind::Workload, Some(at)) => Spec::Workload(WorkloadSpec::read(&at)?),
            (Kind::HttpRoute, Some(at)) => Spec::HttpRoute(HttpRouteSpec::read(&at, &metadata.namespace)?),
            (Kind::GrpcRoute, Some(at)) => Spec::GrpcRoute(GrpcRouteSpec::read(&at, &metadata.namespace)?),
            (Kind::TlsRoute, Some(at)) => Spec::TlsRoute(TlsRouteSpec::read(&at, &metadata.namespace)?),
            (Kind::TcpRoute, Some(at)) => Spec::TcpRoute(L4RouteSpec::read(&at, &metadata.namespace)?),
            (Kind::UdpRoute, Some(at)) => Spec::UdpRoute(L4RouteSpec::read(&at, &metadata.namespace)?),
            (Kind::TrafficPolicy, Some(at)) => Spec::TrafficPolicy(TrafficPolicySpec::read(&at)?),
            (Kind::AuthorizationPolicy, Some(at)) => {
                Spec::AuthorizationPolicy(AuthorizationPolicySpec::read(&at)?)
            }
            (Kind::TransportPolicy, Some(at)) => {
                Spec::TransportPolicy(TransportPolicySpec::read(&at, &metadata.namespace)?)
            }
            (Kind::ExternalService, Some(at)) => Spec::ExternalService(ExternalServiceSpec::read(&at)?),
            (Kind::EnvoyResources, Some(at)) => {
                Spec::EnvoyResources(Box::new(EnvoyResourcesSpec::read(&at, &metadata.name)?))
            }
            (Kind::Mesh, Some(at)) => Spec::Mesh(MeshSpec::read(&at)?),
        };
        let status = fields.read("status", |at| Status::read(&at))?.unwrap_or_default();
        Ok(Self { metadata, spec, status })
    }

    /// [`Resource::parse`] of JSON text.
    pub fn from_json(text: &[u8]) -> Result<Self, ApiError> {
        if text.len() > MAX_BYTES {
            let error = ApiError::new(Reason::OutOfRange, "", Value::Null, format!("1..={MAX_BYTES} bytes"));
            return Err(
                error.saying(format!("the object has {} bytes; accepted: up to {MAX_BYTES}", text.len()))
            );
        }
        let value = serde_json::from_slice(text).map_err(|cause| {
            let error = ApiError::new(Reason::Malformed, "", Value::Null, "one JSON object");
            error.saying(format!("not JSON: {cause}"))
        })?;
        Self::parse(&value)
    }

    /// An object of default metadata, for programs.
    pub fn new(namespace: &str, name: &str, spec: Spec) -> Self {
        let metadata =
            Metadata { name: name.to_owned(), namespace: namespace.to_owned(), ..Metadata::default() };
        Self { metadata, spec, status: Status::default() }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self.spec {
            Spec::Service(_) => Kind::Service,
            Spec::Workload(_) => Kind::Workload,
            Spec::HttpRoute(_) => Kind::HttpRoute,
            Spec::GrpcRoute(_) => Kind::GrpcRoute,
            Spec::TlsRoute(_) => Kind::TlsRoute,
            Spec::TcpRoute(_) => Kind::TcpRoute,
            Spec::UdpRoute(_) => Kind::UdpRoute,
            Spec::TrafficPolicy(_) => Kind::TrafficPolicy,
            Spec::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Spec::TransportPolicy(_) => Kind::TransportPolicy,
            Spec::ExternalService(_) => Kind::ExternalService,
            Spec::EnvoyResources(_) => Kind::EnvoyResources,
            Spec::Mesh(_) => Kind::Mesh,
        }
    }

    /// What it is stored and referred to by.
    pub fn key(&self) -> Key {
        Key {
            kind: self.kind(),
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
        }
    }

    /// The object as JSON, the same for equal objects; [`Resource::parse`] reads it back.
    pub fn to_json(&self) -> Value {
        let kind = self.kind();
        let mut out = json!({
            "apiVersion": kind.api_version(),
            "kind": kind.name(),
            "metadata": self.metadata,
            "spec": self.spec,
        });
        if self.status != Status::default() {
            out["status"] = json!(self.status);
        }
        out
    }

    /// As it is stored: what only the server says is taken from the object that it replaces, or made.
    #[must_use]
    pub fn admitted(
        mut self,
        replaces: Option<&Self>,
        now_ms: u64,
        new_uid: impl FnOnce() -> String,
    ) -> Self {
        if let Some(old) = replaces {
            self.metadata.uid.clone_from(&old.metadata.uid);
            self.metadata.created_ms = old.metadata.created_ms;
            self.status = old.status.clone();
        } else {
            self.metadata.uid = Some(new_uid());
            self.metadata.created_ms = now_ms;
            self.status = Status::default();
        }
        // The store knows the revision; conditions are derived, never stored.
        self.metadata.revision = 0;
        self.status.conditions.clear();
        self
    }

    /// Whether users asked for the same: labels and spec.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.spec == other.spec && self.metadata.labels == other.metadata.labels
    }
}

#[cfg(test)]
mod tests;
