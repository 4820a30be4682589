//! The resources that this node was told of, and who refers to whom.
//!
//! xDS ──[`Batch`]──▶ **model** ──touched──▶ compile
//!
//! Invariant: the indexes hold exactly the references of the resources held, so that compile finds what a
//! change concerns without looking at the rest.
//! Not here: what a reference means, and whether it leads anywhere (compile).

pub(crate) mod external;
mod index;
mod interned;
mod resource;
mod resources;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use mesh_api::proto::v1;

use external::{Externals, as_service};
use index::Index;
use resource::{Memberships, decode};

pub(crate) use interned::Interned;
pub use resource::{Message, Raw, Resource};
pub use resources::Resources;

/// `<namespace>/<name>`: the name of an xDS resource. The mesh is "mesh".
pub type Name = Arc<str>;

/// The kinds of resources that nodes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A service.
    Service,
    /// A workload.
    Workload,
    /// A route for HTTP.
    HttpRoute,
    /// A route for gRPC.
    GrpcRoute,
    /// A route for TLS, by the name that is asked for.
    TlsRoute,
    /// A route for TCP connections.
    TcpRoute,
    /// A route for UDP.
    UdpRoute,
    /// A policy on a service's traffic.
    TrafficPolicy,
    /// Who may connect to workloads.
    AuthorizationPolicy,
    /// How the connections of workloads are carried.
    TransportPolicy,
    /// Names or addresses outside of the mesh.
    ExternalService,
    /// The mesh.
    Mesh,
    /// Whom to believe.
    TrustBundle,
    /// The keys of somebody who issues tokens.
    JwtKeys,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Service,
        Self::Workload,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::UdpRoute,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
        Self::TransportPolicy,
        Self::ExternalService,
        Self::Mesh,
        Self::TrustBundle,
        Self::JwtKeys,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
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
            Self::Mesh => "Mesh",
            Self::TrustBundle => "TrustBundle",
            Self::JwtKeys => "JwtKeys",
        })
    }
}

/// `<namespace>/<name>`.
pub fn join(namespace: &str, name: &str) -> Name {
    let mut joined = String::with_capacity(namespace.len() + 1 + name.len());
    joined.push_str(namespace);
    joined.push('/');
    joined.push_str(name);
    joined.into()
}

/// A route: names are each kind's own.
pub(crate) type RouteName = (Kind, Name);

/// One change, applied as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// New or changed.
    pub upserts: Vec<Resource>,
    /// Gone, by kind and xDS name. Applied before the upserts.
    pub removes: Vec<(Kind, String)>,
}

/// What a batch changed.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Services that were themselves changed, put or removed.
    pub services: BTreeSet<Name>,
    /// Services that something attached to them (route, policy) was changed of.
    pub attached: BTreeSet<Name>,
    /// In no order.
    pub workloads: Vec<Name>,
    /// Of HTTP, gRPC and TLS.
    pub routes: BTreeSet<RouteName>,
    pub l4_routes: BTreeSet<RouteName>,
    pub policies: BTreeSet<Name>,
    pub authorizations: BTreeSet<Name>,
    pub transports: BTreeSet<Name>,
    /// External services, and Services that may have the name of one.
    pub externals: BTreeSet<Name>,
    pub mesh: bool,
    /// Keys of somebody who issues tokens.
    pub jwt: bool,
}

/// All resources held.
#[derive(Debug, Default)]
pub struct Model {
    resources: Resources,
    /// Service → workloads that serve it.
    members: Index,
    /// Service → routes attached to it.
    children: Index<RouteName>,
    /// Service → routes that send to it.
    senders: Index<RouteName>,
    /// The same of TCP and UDP routes.
    l4_children: Index<RouteName>,
    l4_senders: Index<RouteName>,
    /// Service → policies on it.
    on_service: Index,
    externals: Externals,
}

impl Model {
    /// Applies a batch. What is upserted as it was is not touched.
    pub(crate) fn apply(&mut self, batch: Batch) -> Touched {
        let mut touched = Touched::default();
        for (kind, name) in batch.removes {
            self.set(kind, name.into(), None, &mut touched);
        }
        for Resource { kind, name, raw } in batch.upserts {
            self.set(kind, name, Some(&raw), &mut touched);
        }
        touched
    }

    fn set(&mut self, kind: Kind, name: Name, new: Option<&Raw>, touched: &mut Touched) {
        let name = self.resources.name(kind, &name).unwrap_or(name);
        let old = self.resources.set(kind, &name, new.cloned());
        let old = old.as_ref();
        if old.map(Raw::message) == new.map(Raw::message) {
            return;
        }
        match kind {
            Kind::Service => {
                if self.resources.raw(Kind::ExternalService, &name).is_some() {
                    self.settle_external(&name, touched);
                    touched.externals.insert(Name::clone(&name));
                }
                touched.services.insert(name);
            }
            Kind::ExternalService => {
                self.settle_external(&name, touched);
                touched.externals.insert(Name::clone(&name));
                touched.services.insert(name);
            }
            Kind::Workload => {
                self.members.replace(&name, &memberships(old), &memberships(new));
                touched.workloads.push(name);
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute => {
                let (old, new) = (old.map(|raw| http(kind, raw)), new.map(|raw| http(kind, raw)));
                let (before, after) = (parents(old.as_ref()), parents(new.as_ref()));
                let name = (kind, name);
                self.children.replace(&name, &before, &after);
                touched.attached.extend(before.into_iter().chain(after));
                self.senders.replace(&name, &backends(old.as_ref()), &backends(new.as_ref()));
                touched.routes.insert(name);
            }
            Kind::TcpRoute | Kind::UdpRoute => {
                let (old, new) = (old.map(|raw| l4(kind, raw)), new.map(|raw| l4(kind, raw)));
                let (before, after) = (l4_parents(old.as_ref()), l4_parents(new.as_ref()));
                let name = (kind, name);
                self.l4_children.replace(&name, &before, &after);
                touched.attached.extend(before.into_iter().chain(after));
                self.l4_senders.replace(&name, &l4_backends(old.as_ref()), &l4_backends(new.as_ref()));
                touched.l4_routes.insert(name);
            }
            Kind::TrafficPolicy => {
                let (before, after) = (targets(old), targets(new));
                self.on_service.replace(&name, &before, &after);
                touched.attached.extend(before.into_iter().chain(after));
                touched.policies.insert(name);
            }
            Kind::AuthorizationPolicy => drop(touched.authorizations.insert(name)),
            Kind::TransportPolicy => drop(touched.transports.insert(name)),
            Kind::Mesh => touched.mesh = true,
            // Nothing is compiled of it: the agent shows it to who opens tunnels.
            Kind::TrustBundle => {}
            Kind::JwtKeys => touched.jwt = true,
        }
    }

    /// The resources as received.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    fn get<M: Message>(&self, name: &str) -> Option<M> {
        self.resources.raw(M::KIND, name).map(|raw| decode(raw))
    }

    /// The service of that name; an external one in the form of one.
    pub fn service(&self, name: &str) -> Option<v1::Service> {
        self.get(name).or_else(|| self.get(name).map(as_service))
    }

    /// The workload of that name.
    pub fn workload(&self, name: &str) -> Option<v1::Workload> {
        self.get(name).or_else(|| self.externals.get(name).map(|(made, _)| made.clone()))
    }

    /// The HTTP, gRPC or TLS route of that name; all in one form.
    pub(crate) fn route(&self, (kind, name): &RouteName) -> Option<v1::HttpRoute> {
        self.resources.raw(*kind, name).map(|raw| http(*kind, raw))
    }

    /// The TCP or UDP route of that name; both in one form.
    pub(crate) fn l4_route(&self, (kind, name): &RouteName) -> Option<v1::TcpRoute> {
        self.resources.raw(*kind, name).map(|raw| l4(*kind, raw))
    }

    /// The policy of that name.
    pub fn policy(&self, name: &str) -> Option<v1::TrafficPolicy> {
        self.get(name)
    }

    /// The authorisation policy of that name.
    pub fn authorization(&self, name: &str) -> Option<v1::AuthorizationPolicy> {
        self.get(name)
    }

    /// The transport policy of that name.
    pub fn transport(&self, name: &str) -> Option<v1::TransportPolicy> {
        self.get(name)
    }

    /// The mesh; all defaults until it was told.
    pub fn mesh(&self) -> v1::Mesh {
        self.get("mesh").unwrap_or_default()
    }

    /// Whom to believe; `None` until it was told.
    pub fn trust_bundle(&self) -> Option<v1::TrustBundle> {
        self.get("mesh")
    }

    /// The keys of a provider of tokens; `None` until they were told.
    pub fn jwt_keys(&self, provider: &str) -> Option<v1::JwtKeys> {
        self.get(provider)
    }

    pub(crate) fn members(&self, service: &str) -> impl Iterator<Item = &Name> {
        self.members.of(service)
    }

    pub(crate) fn children(&self, service: &str) -> impl Iterator<Item = &RouteName> {
        self.children.of(service)
    }

    pub(crate) fn senders(&self, service: &str) -> impl Iterator<Item = &RouteName> {
        self.senders.of(service)
    }

    pub(crate) fn l4_children(&self, service: &str) -> impl Iterator<Item = &RouteName> {
        self.l4_children.of(service)
    }

    pub(crate) fn l4_senders(&self, service: &str) -> impl Iterator<Item = &RouteName> {
        self.l4_senders.of(service)
    }

    pub(crate) fn policies_on(&self, service: &str) -> impl Iterator<Item = &Name> {
        self.on_service.of(service)
    }
}

fn memberships(workload: Option<&Raw>) -> BTreeSet<Name> {
    let workload = workload.map(Memberships::of).unwrap_or_default();
    workload.services.iter().map(|s| join(&s.namespace, &s.service)).collect()
}

/// Services that a route is attached to.
pub(crate) fn parents(route: Option<&v1::HttpRoute>) -> BTreeSet<Name> {
    services(route.map_or(&[][..], |r| &r.parents))
}

fn backends(route: Option<&v1::HttpRoute>) -> BTreeSet<Name> {
    let rules = route.map_or(&[][..], |r| &r.rules);
    let mirrors = rules.iter().filter_map(|rule| rule.filters.as_ref()).flat_map(|filters| &filters.mirrors);
    let weighted = rules.iter().flat_map(|rule| &rule.backends).filter_map(|b| b.backend.as_ref());
    services(weighted.chain(mirrors.filter_map(|mirror| mirror.backend.as_ref())))
}

/// Services that a TCP or UDP route is attached to.
pub(crate) fn l4_parents(route: Option<&v1::TcpRoute>) -> BTreeSet<Name> {
    services(route.map_or(&[][..], |r| &r.parents))
}

fn l4_backends(route: Option<&v1::TcpRoute>) -> BTreeSet<Name> {
    services(route.map_or(&[][..], |r| &r.backends).iter().filter_map(|b| b.backend.as_ref()))
}

fn services<'a>(of: impl IntoIterator<Item = &'a v1::ServiceRef>) -> BTreeSet<Name> {
    of.into_iter().map(|s| join(&s.namespace, &s.service)).collect()
}

/// An HTTP route, or one of gRPC or TLS in the form of one. Of TLS there is a host and nothing else to go by.
fn http(kind: Kind, raw: &Raw) -> v1::HttpRoute {
    match kind {
        Kind::GrpcRoute => {
            let v1::GrpcRoute { namespace, name, parents, hostnames, rules, created_ms } = decode(raw);
            v1::HttpRoute { namespace, name, parents, hostnames, rules, created_ms }
        }
        Kind::TlsRoute => {
            let v1::TlsRoute { namespace, name, parents, hostnames, backends, created_ms } = decode(raw);
            let rules = vec![v1::HttpRule { backends, ..v1::HttpRule::default() }];
            v1::HttpRoute { namespace, name, parents, hostnames, rules, created_ms }
        }
        _ => decode(raw),
    }
}

/// A TCP route, or a UDP route in the form of one: they differ in the name alone.
fn l4(kind: Kind, raw: &Raw) -> v1::TcpRoute {
    if kind == Kind::TcpRoute {
        return decode(raw);
    }
    let v1::UdpRoute { namespace, name, parents, backends, created_ms } = decode(raw);
    v1::TcpRoute { namespace, name, parents, backends, created_ms }
}

fn targets(policy: Option<&Raw>) -> BTreeSet<Name> {
    let policy: v1::TrafficPolicy = policy.map(decode).unwrap_or_default();
    policy.targets.iter().map(|t| join(&policy.namespace, &t.service)).collect()
}
