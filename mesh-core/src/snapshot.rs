//! The compiled, immutable state of everything this node was told. One epoch number; replaced whole, shared
//! in structure: a change copies what changed.
//!
//! model (xDS) → compile → **snapshot** → { proxy reads it, plan writes it to the BPF maps }
//!
//! Invariant: every id that stands in a snapshot is in it, and every table is non-empty or absent.
//! Not here: what the kernel is told of it (plan), load and health at this moment (they live outside, by
//! endpoint id).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use imbl::{HashMap, OrdMap};
use mesh_api::proto::v1::Protocol;
use mesh_common::policy::Caller;

use crate::authorise::{NOBODY, Network, PolicySet};
use crate::by_id::ById;
use crate::ext_authz::{self, ExtAuthz};
use crate::health::Health;
use crate::jwt::Providers;
use crate::locality::{Nearness, Preference, Spread};
use crate::model::Name;
use crate::mtls::{MtlsMode, MtlsRules};
use crate::outcome::LogRule;
use crate::outside::{Egress, Origination, Outside};
use crate::resilience::Resilience;
use crate::route::RouteTable;

/// Node-local id of one port of one service. Never 0, not reused while a counter on it is above zero.
pub type ServiceId = u32;
/// Node-local id of one (service, service port, workload, target port). Never 0.
pub type EndpointId = u32;
/// Node-local id of a workload. Never 0.
pub type WorkloadId = u32;
/// Number of a [`PolicySet`], as the kernel knows it; see [`mesh_common::policy`]. 0: none.
pub type PolicySetId = u32;

/// Where in the control plane's history a snapshot stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Random id of the store.
    pub store: String,
    /// Revision within it.
    pub number: u64,
}

/// Everything, at one epoch.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rises by one with each compiled change; kept across restarts of the agent.
    pub epoch: u64,
    /// What it was compiled from.
    pub revision: Revision,
    /// By id.
    pub services: ById<Service>,
    /// By id.
    pub workloads: ById<Workload>,
    /// The ports of each service, by `<namespace>/<name>`.
    pub names: OrdMap<Arc<str>, Arc<[ServiceId]>>,
    /// Who may connect to workloads of this node, by number.
    pub policies: HashMap<PolicySetId, Arc<PolicySet>>,
    /// Of service ports whose load is split by priority or nearness: who is in which level. Few have any.
    pub spreads: HashMap<ServiceId, Arc<Spread>>,
    /// Service ports whose endpoints are spoken TLS with. Few, if any.
    pub originations: HashMap<ServiceId, Arc<Origination>>,
    /// Host names outside of the mesh → the external service that has them.
    pub hosts: OrdMap<Arc<str>, Name>,
    /// Host names that this node is to resolve, in order.
    pub resolves: Arc<[Arc<str>]>,
    /// Trust domain of the mesh.
    pub trust_domain: Arc<str>,
    /// Who issues tokens.
    pub jwt: Arc<Providers>,
    /// Who may be asked about requests.
    pub ext_authz: ext_authz::Providers,
    /// Seconds that answers about names may be remembered, where a service says nothing else; `None`: nobody says.
    pub dns_ttl: Option<u32>,
}

impl Snapshot {
    /// The provider of that name.
    pub fn ext_authz(&self, name: &str) -> Option<&Arc<ExtAuthz>> {
        self.ext_authz.iter().find(|one| &*one.name == name)
    }

    /// A caller that has proved who it is, as policies know it. Of an identity that no workload has, its namespace
    /// alone is known. Cost: a look at every workload, once a connection to a workload with policies.
    pub fn caller(&self, namespace: &str, service_account: &str) -> Caller {
        let mut found = NOBODY;
        for workload in self.workloads.values().filter(|workload| workload.namespace() == namespace) {
            found.namespace = workload.mesh_ns;
            if &*workload.service_account == service_account {
                found.identity = workload.identity;
                break;
            }
        }
        found
    }
}

impl Snapshot {
    /// The workload of this identity at this address. Cost: a look at every workload.
    pub fn workload_at(&self, address: IpAddr, namespace: &str, account: &str) -> Option<WorkloadId> {
        let is = |w: &&Arc<Workload>| {
            w.addresses.contains(&address) && w.namespace() == namespace && *w.service_account == *account
        };
        self.workloads.values().find(is).map(|workload| workload.id)
    }
}
/// The routes that namespaces have made for their own clients, by namespace.
pub type Consumers = BTreeMap<Arc<str>, Arc<RouteTable>>;

/// One port of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Mesh namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
    /// Service port, host order.
    pub port: u16,
    /// The port's name; may be empty.
    pub port_name: Arc<str>,
    /// Virtual addresses; none: headless.
    pub vips: Vec<IpAddr>,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Why connections to it need the proxy; `None`: the kernel path.
    pub why: Option<Why>,
    /// What becomes of new connections while the proxy is gone.
    pub on_proxy_loss: OnProxyLoss,
    /// How its endpoints are chosen, limited and left out.
    pub traffic: Traffic,
    /// What is asked for of requests; `None`: nothing.
    pub resilience: Option<Arc<Resilience>>,
    /// Inbound connections to its endpoints go through their node's agent.
    pub inbound_proxy: bool,
    /// Those that take new connections (weight above 0, healthy, not draining) first, then the rest.
    pub endpoints: Arc<[Endpoint]>,
    /// How many of `endpoints`, from the first on, take new connections.
    pub serving: usize,
    /// HTTP routes attached to this port, of TLS its TLS routes; `None`: requests go to its own endpoints.
    pub routes: Option<Arc<RouteTable>>,
    /// In place of those, for clients of some namespaces. Few services have any.
    pub consumers: Option<Arc<Consumers>>,
    /// The route's weights as (service, weight) for connections that bypass a lost proxy: the catch-all
    /// rule's backends, else the service itself. Where `split` holds, for every connection.
    pub fallback: Vec<(ServiceId, u32)>,
    /// A TCP or UDP route is attached: connections go by the weights of `fallback`, not to its own endpoints.
    pub split: bool,
    /// Every service that its connections may end at, in order: its routes' backends, else itself.
    pub backends: Vec<ServiceId>,
    /// How its workloads are asked whether they are well; `None`: nobody asks.
    pub health: Option<Arc<Health>>,
    /// Seconds that answers about its names may be remembered; `None`: as the mesh says.
    pub dns_ttl: Option<u32>,
}

impl Service {
    /// Datagrams? Everything else goes over TCP.
    pub fn udp(&self) -> bool {
        self.protocol == Protocol::Udp
    }

    /// The routes that hold for a client of this namespace; `None`: none do.
    pub fn routes_of<'n>(&self, namespace: impl FnOnce() -> Option<&'n str>) -> Option<&Arc<RouteTable>> {
        let Some(consumers) = &self.consumers else { return self.routes.as_ref() };
        namespace().and_then(|namespace| consumers.get(namespace)).or(self.routes.as_ref())
    }

    /// Those that take new connections.
    pub fn serving(&self) -> &[Endpoint] {
        &self.endpoints[..self.serving]
    }
}

/// How the endpoints of a service port are chosen, limited and left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How one is chosen.
    pub balancing: Balancing,
    /// For how long after its last connection a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Most connections from this node; 0: no limit.
    pub max_connections: u32,
    /// Most connections from this node to each endpoint; 0: no limit.
    pub max_per_endpoint: u32,
    /// When an endpoint is left out.
    pub ejection: Option<Ejection>,
    /// Until an endpoint that has come has all of its weight.
    pub slow_start: Option<Duration>,
    /// How long `connect()` may wait.
    pub connect_timeout: Option<Duration>,
    /// Which endpoints come first; `None`: all are alike.
    pub locality: Option<Preference>,
}
// What few ask for has its room where there was none used.
const _: () = assert!(size_of::<Traffic>() == 88);

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    /// In turn, by weight; in the kernel as [`Balancing::Random`].
    #[default]
    RoundRobin,
    /// At random, by weight.
    Random,
    /// Of two drawn by weight the one with fewer connections for its weight.
    LeastConnections,
    /// The same with fewer requests in flight; in the kernel as [`Balancing::LeastConnections`].
    LeastRequests,
    /// The one that is expected to answer sooner; in the kernel as [`Balancing::LeastConnections`].
    PeakEwma,
    /// By the client.
    Maglev,
}

impl Balancing {
    /// Does the kernel choose the one with fewer connections?
    pub const fn is_least(self) -> bool {
        matches!(self, Self::LeastConnections | Self::LeastRequests | Self::PeakEwma)
    }
}

/// When an endpoint is left out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Connections in a row that were not established.
    pub failures: u32,
    /// The first time; longer each time.
    pub base: Duration,
    /// Of the endpoints.
    pub max_percent: u32,
}

/// Why a connection needs the proxy. Shown by `meshctl get service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A route is attached that the proxy carries out.
    Route,
    /// The port speaks HTTP and HTTP goes through the proxy (`http: proxy`).
    Http,
    /// The agent speaks TLS with the endpoints.
    Tls,
    /// A policy asks for something of its requests.
    Policy,
    /// What clients begin with says what is spoken (`protocol: auto`).
    Detect,
}

impl Why {
    /// Its name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Policy => "policy",
            Self::Detect => "detect",
        }
    }
}

/// What new connections do while the proxy is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnProxyLoss {
    /// They take the kernel path to the route's weights.
    #[default]
    Bypass,
    /// They are refused.
    Refuse,
}

/// One workload behind a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Workload behind it.
    pub workload: WorkloadId,
    /// IPv4 address of the workload, if it has one.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address of the workload, if it has one.
    pub v6: Option<Ipv6Addr>,
    /// Target port.
    pub port: u16,
    /// Weight as configured, 0..=65535. Of a service in [`Snapshot::spreads`] the part that it takes, below 2²⁷: 0 of
    /// one that serves makes it a spare.
    pub weight: u32,
    /// Lives on this node.
    pub local: bool,
    /// Its workload's, where that lives on this node.
    pub policy_set: PolicySetId,
    /// How connections to it are encrypted; `Off` for datagrams.
    pub mtls: MtlsMode,
    /// Connections from this node go through a tunnel, unless the caller's own mode is off.
    pub tunnel: bool,
}

impl Endpoint {
    /// Where to dial it from a client that used an address of this family; the other family where that is
    /// all there is.
    pub fn address(&self, prefer_v6: bool) -> Option<SocketAddr> {
        let v4 = self.v4.map(|a| SocketAddr::from((a, self.port)));
        let v6 = self.v6.map(|a| SocketAddr::from((a, self.port)));
        if prefer_v6 { v6.or(v4) } else { v4.or(v6) }
    }
}

/// One workload of the mesh, on this node or another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its id.
    pub id: WorkloadId,
    /// `<namespace>/<name>`.
    pub full_name: Arc<str>,
    /// Service account within the namespace.
    pub service_account: Arc<str>,
    /// Node; empty for endpoints outside any.
    pub node: Arc<str>,
    /// On this node.
    pub local: bool,
    /// It shares its addresses with its host: only the ports that it serves are its own.
    pub host_network: bool,
    /// Its node's agent takes tunnels for it.
    pub hbone: bool,
    /// How its connections are encrypted.
    pub mtls: MtlsRules,
    /// It is no workload, but an endpoint outside of the mesh.
    pub outside: Option<Outside>,
    /// How near it is to this node.
    pub nearness: Nearness,
    /// Its endpoints are sent to when those of lower numbers are too weak; 0 the first.
    pub priority: u8,
    /// Node-local id of its identity (namespace and service account).
    pub identity: u32,
    /// Node-local id of its mesh namespace.
    pub mesh_ns: u32,
    /// Who may connect to it; 0: everybody. Known only of workloads of this node.
    pub policy_set: PolicySetId,
    /// The same policies, where they look at what comes to any of its ports; `None`: addresses and identities are all
    /// that they ask for.
    pub looks: Option<Arc<PolicySet>>,
    /// How its connections are carried; `None`: no policy says. Known only of workloads of this node.
    pub transport: Option<Arc<Transport>>,
    /// Addresses.
    pub addresses: Box<[IpAddr]>,
    /// What it serves, by port; of several services on one port the one with the lowest id comes first, and
    /// a connection to the workload's own address counts as one to that.
    pub ports: Box<[WorkloadPort]>,
}

/// How the connections of a workload are carried: what all transport policies that are for it come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// The policies that it is made of, in order.
    pub policies: Box<[Name]>,
    /// Datagrams that it has not asked for are dropped.
    pub no_udp: bool,
    /// What it opens and the mesh leaves alone.
    pub outbound: Exclusions,
    /// What comes to it and the mesh leaves alone; who may connect is asked all the same.
    pub inbound: Exclusions,
    /// Connections through the proxy at once; `None`: as the agent was told.
    pub connections: Option<u32>,
    /// Of them those that wait for the proxy; `None`: as the agent was told.
    pub pending: Option<u16>,
    /// Its captured connections go past TCP, where the kernel can do it.
    pub splice: bool,
    /// What it opens is not encrypted.
    pub plain: bool,
    /// What it may open to the outside of the mesh.
    pub egress: Egress,
    /// Which of its requests are written down.
    pub log: LogRule,
}

/// What is left alone in one direction: whatever one of these names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Ports, in order.
    pub ports: Box<[u16]>,
    /// Addresses.
    pub networks: Box<[Network]>,
    /// Interfaces, by the names that they have in the workload's namespace.
    pub interfaces: Box<[Box<str>]>,
}

impl Exclusions {
    /// Nothing?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Workload {
    /// Mesh namespace.
    pub fn namespace(&self) -> &str {
        self.full_name.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Name within the namespace.
    pub fn name(&self) -> &str {
        self.full_name.split_once('/').map_or(&*self.full_name, |(_, name)| name)
    }

    /// Do connections from this node to a port of it go through a tunnel, unless the caller's own mode is off?
    pub fn tunnels(&self, port: u16) -> bool {
        !self.local && self.hbone && !self.host_network && self.mtls.at(port) != MtlsMode::Off
    }

    /// Does a listener for tunnels to it belong on this node?
    pub fn takes_tunnels(&self) -> bool {
        self.local && self.hbone && !self.host_network && !self.mtls.all_off()
    }

    /// Its policies, where they look at what comes to this port.
    pub fn looks_at(&self, port: u16) -> Option<&Arc<PolicySet>> {
        self.looks.as_ref().filter(|set| set.looks(Some(port)))
    }

    /// Its first IPv4 address.
    pub fn v4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None })
    }

    /// Its first IPv6 address.
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None })
    }
}

/// One port of a workload that serves a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// Target port.
    pub port: u16,
    /// The service port that it serves.
    pub service: ServiceId,
    /// The endpoint that it is.
    pub endpoint: EndpointId,
    /// Weight as configured.
    pub weight: u16,
    /// Takes new connections, as far as its health goes.
    pub healthy: bool,
    /// As the service's: a connection to the workload's own address is treated as one to the service.
    pub proxy: bool,
    /// As the service's.
    pub on_proxy_loss: OnProxyLoss,
    /// As the service's.
    pub inbound_proxy: bool,
    /// As the service's.
    pub protocol: Protocol,
}

impl WorkloadPort {
    /// Datagrams? Everything else goes over TCP.
    pub fn udp(&self) -> bool {
        self.protocol == Protocol::Udp
    }
}
