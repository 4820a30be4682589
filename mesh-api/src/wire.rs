//! Resources to wire messages (`proto::v1`).
//!
//! Only what stands in the object itself: a Workload's memberships are filled in by the registry, which knows
//! the services.
//! Not here: delta xDS (mesh-control), hashes (mesh-registry).

mod health;
mod http;
mod resilience;

use serde_json::json;

use crate::proto::v1;
use crate::resource::{
    Action, Affinity, AuthorizationPolicySpec, AuthorizationRule, BackendRef, Balancing, ClaimHeader,
    ClaimTerm, ClientCertificate, Dns, Egress, EgressMode, Exclusions, ExtAuthz, ExternalPort,
    ExternalServiceSpec, HeaderIs, HeaderTerm, HttpMode, Inbound, JwtProvider, JwtTerms, Kind, L4RouteSpec,
    LocalityMode, LocalityPolicy, MeshSpec, MtlsMode, OnFailure, OnProxyLoss, ParentRef, PolicyScope,
    PortMtls, Protocol, Resource, Scope, ServicePort, ServiceSpec, Spec, TargetTerms, TlsOrigination,
    TokenHeader, TrafficPolicySpec, TransportPolicySpec, UdpMode, WorkloadSpec,
};

/// A wire message of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Wire {
    /// `Service`
    Service(v1::Service),
    /// `Workload`
    Workload(v1::Workload),
    /// `HttpRoute`
    HttpRoute(v1::HttpRoute),
    /// `GrpcRoute`
    GrpcRoute(v1::GrpcRoute),
    /// `TlsRoute`
    TlsRoute(v1::TlsRoute),
    /// `TcpRoute`
    TcpRoute(v1::TcpRoute),
    /// `UdpRoute`
    UdpRoute(v1::UdpRoute),
    /// `TrafficPolicy`
    TrafficPolicy(v1::TrafficPolicy),
    /// `AuthorizationPolicy`
    AuthorizationPolicy(v1::AuthorizationPolicy),
    /// `TransportPolicy`
    TransportPolicy(v1::TransportPolicy),
    /// `ExternalService`
    ExternalService(v1::ExternalService),
    /// `Mesh`
    Mesh(v1::Mesh),
    /// `EnvoyResources`: agents are never sent it. As JSON, to tell one from the other.
    EnvoyResources(Vec<u8>),
}

impl Wire {
    /// Its bytes, the same for equal messages.
    pub fn encode(&self) -> Vec<u8> {
        use prost::Message as _;
        match self {
            Self::Service(message) => message.encode_to_vec(),
            Self::Workload(message) => message.encode_to_vec(),
            Self::HttpRoute(message) => message.encode_to_vec(),
            Self::GrpcRoute(message) => message.encode_to_vec(),
            Self::TlsRoute(message) => message.encode_to_vec(),
            Self::TcpRoute(message) => message.encode_to_vec(),
            Self::UdpRoute(message) => message.encode_to_vec(),
            Self::TrafficPolicy(message) => message.encode_to_vec(),
            Self::AuthorizationPolicy(message) => message.encode_to_vec(),
            Self::TransportPolicy(message) => message.encode_to_vec(),
            Self::ExternalService(message) => message.encode_to_vec(),
            Self::Mesh(message) => message.encode_to_vec(),
            Self::EnvoyResources(json) => json.clone(),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Workload(_) => Kind::Workload,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::UdpRoute(_) => Kind::UdpRoute,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::TransportPolicy(_) => Kind::TransportPolicy,
            Self::ExternalService(_) => Kind::ExternalService,
            Self::Mesh(_) => Kind::Mesh,
            Self::EnvoyResources(_) => Kind::EnvoyResources,
        }
    }
}

/// The message of an object; `memberships` are the resolved ones of a Workload.
pub fn wire(resource: &Resource, memberships: Vec<v1::WorkloadService>) -> Wire {
    match &resource.spec {
        Spec::Service(spec) => Wire::Service(service(resource, spec)),
        Spec::Workload(spec) => Wire::Workload(workload(resource, spec, memberships)),
        Spec::HttpRoute(spec) => Wire::HttpRoute(http::route(resource, spec)),
        Spec::GrpcRoute(spec) => Wire::GrpcRoute(http::grpc_route(resource, spec)),
        Spec::TlsRoute(spec) => Wire::TlsRoute(http::tls_route(resource, spec)),
        Spec::TcpRoute(spec) => Wire::TcpRoute(tcp_route(resource, spec)),
        Spec::UdpRoute(spec) => {
            // The same in all but the name.
            let v1::TcpRoute { namespace, name, parents, backends, created_ms } = tcp_route(resource, spec);
            Wire::UdpRoute(v1::UdpRoute { namespace, name, parents, backends, created_ms })
        }
        Spec::TrafficPolicy(spec) => Wire::TrafficPolicy(traffic_policy(resource, spec)),
        Spec::AuthorizationPolicy(spec) => Wire::AuthorizationPolicy(authorization_policy(resource, spec)),
        Spec::TransportPolicy(spec) => Wire::TransportPolicy(transport_policy(resource, spec)),
        Spec::ExternalService(spec) => Wire::ExternalService(external_service(resource, spec)),
        Spec::Mesh(spec) => Wire::Mesh(mesh(spec)),
        Spec::EnvoyResources(spec) => Wire::EnvoyResources(json!(spec).to_string().into_bytes()),
    }
}

fn service(resource: &Resource, spec: &ServiceSpec) -> v1::Service {
    let vips = match (spec.headless, spec.vips.is_empty()) {
        (true, _) => &[][..],
        (false, true) => &resource.status.vips[..],
        (false, false) => &spec.vips[..],
    };
    v1::Service {
        namespace: resource.metadata.namespace.clone(),
        name: resource.metadata.name.clone(),
        vips: vips.iter().map(ToString::to_string).collect(),
        ports: spec.ports.iter().map(service_port).collect(),
        health_check: spec.health_check.as_ref().map(health::check),
        recovery: spec.recovery.as_ref().map(health::recovery),
        dns_ttl_seconds: spec.dns.map(Dns::seconds),
    }
}

fn protocol(protocol: Protocol) -> v1::Protocol {
    match protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Http => v1::Protocol::Http,
        Protocol::Tls => v1::Protocol::Tls,
        Protocol::Udp => v1::Protocol::Udp,
        Protocol::Auto => v1::Protocol::Auto,
    }
}

fn external_service(resource: &Resource, spec: &ExternalServiceSpec) -> v1::ExternalService {
    let tls = |tls: &TlsOrigination| v1::TlsOrigination {
        sni: tls.sni.clone().or_else(|| spec.hosts.first().cloned()).unwrap_or_default(),
        ca_bundle: tls.ca_bundle.clone().unwrap_or_default(),
        ca_file: tls.ca_file.clone().unwrap_or_default(),
        subject_alt_names: tls.subject_alt_names.clone(),
        client_certificate: tls.client_certificate == ClientCertificate::Mesh,
        alpn: tls.alpn.clone(),
    };
    let port = |port: &ExternalPort| v1::ExternalPort {
        name: port.name.clone(),
        port: port.port.into(),
        target_port: port.target_port.into(),
        protocol: protocol(port.protocol).into(),
        tls: port.tls.as_ref().map(tls),
    };
    v1::ExternalService {
        namespace: resource.metadata.namespace.clone(),
        name: resource.metadata.name.clone(),
        vips: resource.status.vips.iter().map(ToString::to_string).collect(),
        hosts: spec.hosts.clone(),
        addresses: spec.addresses.iter().map(ToString::to_string).collect(),
        ports: spec.ports.iter().map(port).collect(),
        created_ms: resource.metadata.created_ms,
    }
}

fn service_port(port: &ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        name: port.name.clone(),
        port: port.port.into(),
        protocol: protocol(port.protocol).into(),
        inbound_proxy: port.inbound == Inbound::Proxy,
        health_check: port.health_check.as_ref().map(health::check),
    }
}

fn workload(resource: &Resource, spec: &WorkloadSpec, memberships: Vec<v1::WorkloadService>) -> v1::Workload {
    v1::Workload {
        namespace: resource.metadata.namespace.clone(),
        name: resource.metadata.name.clone(),
        service_account: spec.service_account.clone(),
        node: spec.node.clone(),
        addresses: spec.addresses.iter().map(ToString::to_string).collect(),
        labels: resource.metadata.labels.clone().into_iter().collect(),
        services: memberships,
        host_network: spec.host_network,
        hbone: spec.hbone,
        locality: spec
            .locality
            .as_ref()
            .map(|at| v1::Locality { region: at.region.clone(), zone: at.zone.clone() }),
        priority: spec.priority.into(),
    }
}

fn tcp_route(resource: &Resource, spec: &L4RouteSpec) -> v1::TcpRoute {
    let own = &resource.metadata.namespace;
    v1::TcpRoute {
        namespace: own.clone(),
        name: resource.metadata.name.clone(),
        parents: spec.parent_refs.iter().map(|parent| parent_ref(parent, own)).collect(),
        backends: spec.backends().map(|backend| weighted_backend(backend, own)).collect(),
        created_ms: resource.metadata.created_ms,
    }
}

fn parent_ref(parent: &ParentRef, own: &str) -> v1::ServiceRef {
    v1::ServiceRef {
        namespace: parent.namespace.clone().unwrap_or_else(|| own.to_owned()),
        service: parent.name.clone(),
        port: parent.port.map_or(0, u32::from),
    }
}

fn weighted_backend(backend: &BackendRef, own: &str) -> v1::WeightedBackend {
    v1::WeightedBackend {
        backend: Some(service_ref(backend, own)),
        weight: backend.weight,
        filters: http::filters(&backend.filters, own),
    }
}

fn service_ref(backend: &BackendRef, own: &str) -> v1::ServiceRef {
    v1::ServiceRef {
        namespace: backend.namespace.clone().unwrap_or_else(|| own.to_owned()),
        service: backend.name.clone(),
        port: backend.port.into(),
    }
}

fn traffic_policy(resource: &Resource, spec: &TrafficPolicySpec) -> v1::TrafficPolicy {
    let target = |target: &crate::resource::TargetRef| v1::PolicyTarget {
        service: target.name.clone(),
        section_name: target.section_name.clone().unwrap_or_default(),
    };
    let on_proxy_loss = match spec.on_proxy_loss {
        None => v1::OnProxyLoss::Unset,
        Some(OnProxyLoss::Bypass) => v1::OnProxyLoss::Bypass,
        Some(OnProxyLoss::Refuse) => v1::OnProxyLoss::Refuse,
    };
    let balancing = match spec.balancing {
        None => v1::Balancing::Unset,
        Some(Balancing::RoundRobin) => v1::Balancing::RoundRobin,
        Some(Balancing::Random) => v1::Balancing::Random,
        Some(Balancing::LeastConnections) => v1::Balancing::LeastConnections,
        Some(Balancing::LeastRequests) => v1::Balancing::LeastRequests,
        Some(Balancing::PeakEwma) => v1::Balancing::PeakEwma,
        Some(Balancing::Maglev) => v1::Balancing::Maglev,
    };
    let millis = resilience::millis;
    v1::TrafficPolicy {
        namespace: resource.metadata.namespace.clone(),
        name: resource.metadata.name.clone(),
        targets: spec.target_refs.iter().map(target).collect(),
        http: spec.http.map_or(v1::HttpMode::Unset, http_mode).into(),
        on_proxy_loss: on_proxy_loss.into(),
        balancing: balancing.into(),
        created_ms: resource.metadata.created_ms,
        affinity_timeout_ms: match &spec.affinity {
            Some(Affinity::Timeout(time)) => millis(*time),
            _ => 0,
        },
        sticky: spec.affinity.as_ref().and_then(resilience::sticky),
        limits: spec.limits.as_ref().map(resilience::limits),
        outlier_ejection: spec.outlier_ejection.as_ref().map(resilience::ejection),
        slow_start_ms: spec.slow_start.map_or(0, |slow| millis(slow.window)),
        connect_timeout_ms: spec.connect_timeout.map_or(0, millis),
        locality: spec.locality.as_ref().map(locality_policy),
        breaker: spec.breaker.map(resilience::breaker),
        rate_limits: spec.rate_limits.iter().map(resilience::rate).collect(),
        fault: spec.fault.as_ref().map(resilience::fault),
        hedge: spec.hedge.map(resilience::hedge),
    }
}

fn locality_policy(policy: &LocalityPolicy) -> v1::LocalityPolicy {
    let prefers = |scope| policy.prefer.contains(&scope);
    v1::LocalityPolicy {
        node: prefers(Scope::Node),
        zone: prefers(Scope::Zone),
        region: prefers(Scope::Region),
        strict: policy.mode == LocalityMode::Strict,
        overprovisioning_percent: policy.overprovisioning_percent.into(),
    }
}

fn authorization_policy(resource: &Resource, spec: &AuthorizationPolicySpec) -> v1::AuthorizationPolicy {
    let own = &resource.metadata.namespace;
    let action = match spec.action {
        Action::Allow => v1::AuthorizationAction::Allow,
        Action::Deny => v1::AuthorizationAction::Deny,
        Action::Audit => v1::AuthorizationAction::Audit,
        Action::Custom => v1::AuthorizationAction::Custom,
    };
    v1::AuthorizationPolicy {
        namespace: own.clone(),
        name: resource.metadata.name.clone(),
        selector: spec.selector.match_labels.clone().into_iter().collect(),
        action: action.into(),
        rules: spec.rules.iter().map(|rule| authorization_rule(rule, own)).collect(),
        provider: spec.provider.clone().unwrap_or_default(),
    }
}

fn authorization_rule(rule: &AuthorizationRule, own: &str) -> v1::AuthorizationRule {
    let from = rule.from.iter().map(|terms| {
        let accounts = terms.service_accounts.iter().map(|account| v1::Principal {
            trust_domain: String::new(),
            namespace: account.namespace.clone().unwrap_or_else(|| own.to_owned()),
            service_account: account.name.clone(),
        });
        let principals = terms.principals.iter().map(|id| v1::Principal {
            trust_domain: id.trust_domain().to_owned(),
            namespace: id.namespace().to_owned(),
            service_account: id.service_account().to_owned(),
        });
        v1::SourceTerms {
            identities: accounts.chain(principals).collect(),
            namespaces: terms.namespaces.clone(),
            cidrs: terms.cidrs.iter().map(ToString::to_string).collect(),
            jwt: terms.jwt.as_ref().map(jwt_terms),
        }
    });
    let from = from.collect();
    if !rule.asks_requests() {
        let ports = rule.to.iter().flat_map(|to| &to.ports).map(|port| u32::from(*port));
        return v1::AuthorizationRule { from, ports: ports.collect(), ..v1::AuthorizationRule::default() };
    }
    v1::AuthorizationRule {
        from,
        ports: vec![0],
        to: rule.to.iter().map(target_terms).collect(),
        headers: rule.headers.iter().map(header_term).collect(),
    }
}

fn target_terms(to: &TargetTerms) -> v1::TargetTerms {
    v1::TargetTerms {
        ports: to.ports.iter().map(|port| u32::from(*port)).collect(),
        methods: to.methods.clone(),
        paths: to.paths.iter().map(ToString::to_string).collect(),
        hosts: to.hosts.clone(),
    }
}

fn header_term(term: &HeaderTerm) -> v1::HeaderTerm {
    use v1::header_term::Is;
    let is = match &term.is {
        HeaderIs::Values(values) => Is::Values(v1::HeaderValues { values: values.clone() }),
        HeaderIs::Prefix(prefix) => Is::Prefix(prefix.clone()),
        HeaderIs::Present => Is::Present(true),
        HeaderIs::Absent => Is::Present(false),
    };
    v1::HeaderTerm { name: term.name.clone(), is: Some(is) }
}

fn transport_policy(resource: &Resource, spec: &TransportPolicySpec) -> v1::TransportPolicy {
    let udp = match spec.udp {
        None => v1::UdpMode::Unset,
        Some(UdpMode::Allow) => v1::UdpMode::Allow,
        Some(UdpMode::Deny) => v1::UdpMode::Deny,
    };
    let splice = match spec.splice {
        None => v1::SpliceMode::Unset,
        Some(true) => v1::SpliceMode::On,
        Some(false) => v1::SpliceMode::Off,
    };
    let exclusions = |all: &Exclusions| v1::Exclusions {
        ports: all.ports.iter().map(|port| u32::from(*port)).collect(),
        cidrs: all.cidrs.iter().map(ToString::to_string).collect(),
        interfaces: all.interfaces.clone(),
    };
    v1::TransportPolicy {
        namespace: resource.metadata.namespace.clone(),
        name: resource.metadata.name.clone(),
        mesh: spec.scope == PolicyScope::Mesh,
        selector: spec.selector.match_labels.clone().into_iter().collect(),
        udp: udp.into(),
        outbound: spec.exclude.outbound.as_ref().map(exclusions),
        inbound: spec.exclude.inbound.as_ref().map(exclusions),
        budget_connections: spec.budget.connections.unwrap_or(0),
        budget_pending: spec.budget.pending.map_or(0, u32::from),
        created_ms: resource.metadata.created_ms,
        splice: splice.into(),
        mtls: spec.mtls.as_ref().and_then(|mtls| mtls.mode).map_or(v1::MtlsMode::Unset, mtls_mode).into(),
        mtls_ports: spec.mtls.iter().flat_map(|mtls| &mtls.ports).copied().map(port_mtls).collect(),
        egress: spec.egress.map_or(v1::EgressMode::Unset, egress).into(),
        access_log: spec
            .access_log
            .map(|log| v1::AccessLog { percent: log.percent.into(), errors: log.errors }),
    }
}

fn mesh(spec: &MeshSpec) -> v1::Mesh {
    v1::Mesh {
        trust_domain: spec.trust_domain.clone(),
        http: http_mode(spec.http).into(),
        mtls: mtls_mode(spec.mtls.mode).into(),
        jwt_providers: spec.jwt_providers.iter().map(jwt_provider).collect(),
        egress: egress(spec.egress).into(),
        ext_authz: spec.ext_authz.iter().map(ext_authz).collect(),
        dns_ttl_seconds: spec.dns.map(Dns::seconds),
    }
}

fn ext_authz(one: &ExtAuthz) -> v1::ExtAuthz {
    v1::ExtAuthz {
        name: one.name.clone(),
        service: Some(v1::ServiceRef {
            namespace: one.service.namespace.clone(),
            service: one.service.name.clone(),
            port: one.service.port.into(),
        }),
        timeout_ms: u32::try_from(one.timeout.as_millis()).unwrap_or(u32::MAX),
        fail_open: one.on_failure == OnFailure::Allow,
    }
}

fn jwt_provider(provider: &JwtProvider) -> v1::JwtProvider {
    let header = |one: &TokenHeader| v1::TokenHeader { name: one.name.clone(), prefix: one.prefix.clone() };
    let claim = |one: &ClaimHeader| v1::ClaimHeader { claim: one.claim.clone(), header: one.header.clone() };
    v1::JwtProvider {
        name: provider.name.clone(),
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.clone(),
        headers: provider.from_headers.iter().map(header).collect(),
        forward: provider.forward,
        claims_to_headers: provider.claims_to_headers.iter().map(claim).collect(),
        clock_skew_ms: u32::try_from(provider.clock_skew.as_millis()).unwrap_or(u32::MAX),
    }
}

fn jwt_terms(terms: &JwtTerms) -> v1::JwtTerms {
    let claim = |one: &ClaimTerm| v1::ClaimTerm { name: one.name.clone(), values: one.values.clone() };
    v1::JwtTerms {
        provider: terms.provider.clone(),
        subjects: terms.subjects.clone(),
        claims: terms.claims.iter().map(claim).collect(),
    }
}

fn egress(egress: Egress) -> v1::EgressMode {
    match egress.mode {
        EgressMode::AllowAll => v1::EgressMode::AllowAll,
        EgressMode::AllowList => v1::EgressMode::AllowList,
    }
}

fn mtls_mode(mode: MtlsMode) -> v1::MtlsMode {
    match mode {
        MtlsMode::Off => v1::MtlsMode::Off,
        MtlsMode::Permissive => v1::MtlsMode::Permissive,
        MtlsMode::Strict => v1::MtlsMode::Strict,
    }
}

fn port_mtls(one: PortMtls) -> v1::PortMtls {
    v1::PortMtls { port: one.port.into(), mode: mtls_mode(one.mode).into() }
}

fn http_mode(mode: HttpMode) -> v1::HttpMode {
    match mode {
        HttpMode::Proxy => v1::HttpMode::Proxy,
        HttpMode::Kernel => v1::HttpMode::Kernel,
    }
}
