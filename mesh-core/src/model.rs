//! The resources that this node was told of, and who refers to whom.
//!
//! xDS ──[`Batch`]──▶ **model** ──touched──▶ compile
//!
//! Invariant: the indexes hold exactly the references of the resources held, so that compile finds what a
//! change concerns without looking at the rest.
//! Not here: what a reference means, and whether it leads anywhere (compile).

mod index;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use mesh_api::proto::v1;

use index::Index;

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
    /// A policy on a service's traffic.
    TrafficPolicy,
    /// The mesh.
    Mesh,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Service, Self::Workload, Self::HttpRoute, Self::TrafficPolicy, Self::Mesh];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::HttpRoute => "HTTPRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::Mesh => "Mesh",
        })
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is named as its kind")]
pub enum Resource {
    Service(v1::Service),
    Workload(v1::Workload),
    HttpRoute(v1::HttpRoute),
    TrafficPolicy(v1::TrafficPolicy),
    Mesh(v1::Mesh),
}

impl Resource {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Workload(_) => Kind::Workload,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::Mesh(_) => Kind::Mesh,
        }
    }

    /// Its xDS name.
    pub fn name(&self) -> Name {
        match self {
            Self::Service(r) => join(&r.namespace, &r.name),
            Self::Workload(r) => join(&r.namespace, &r.name),
            Self::HttpRoute(r) => join(&r.namespace, &r.name),
            Self::TrafficPolicy(r) => join(&r.namespace, &r.name),
            Self::Mesh(_) => Name::from("mesh"),
        }
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
    pub workloads: BTreeSet<Name>,
    pub routes: BTreeSet<Name>,
    pub policies: BTreeSet<Name>,
    pub mesh: bool,
}

/// All resources held.
#[derive(Debug, Default)]
pub struct Model {
    services: HashMap<Name, Arc<v1::Service>>,
    workloads: HashMap<Name, Arc<v1::Workload>>,
    routes: HashMap<Name, Arc<v1::HttpRoute>>,
    policies: HashMap<Name, Arc<v1::TrafficPolicy>>,
    mesh: v1::Mesh,
    /// Service → workloads that serve it.
    members: Index,
    /// Service → routes attached to it.
    children: Index,
    /// Service → routes that send to it.
    senders: Index,
    /// Service → policies on it.
    on_service: Index,
}

impl Model {
    /// Applies a batch. What is upserted as it was is not touched.
    pub(crate) fn apply(&mut self, batch: Batch) -> Touched {
        let mut touched = Touched::default();
        for (kind, name) in batch.removes {
            let name = Name::from(name);
            match kind {
                Kind::Service => self.set_service(&name, None, &mut touched),
                Kind::Workload => self.set_workload(&name, None, &mut touched),
                Kind::HttpRoute => self.set_route(&name, None, &mut touched),
                Kind::TrafficPolicy => self.set_policy(&name, None, &mut touched),
                Kind::Mesh => self.set_mesh(v1::Mesh::default(), &mut touched),
            }
        }
        for resource in batch.upserts {
            let name = resource.name();
            match resource {
                Resource::Service(r) => self.set_service(&name, Some(r), &mut touched),
                Resource::Workload(r) => self.set_workload(&name, Some(r), &mut touched),
                Resource::HttpRoute(r) => self.set_route(&name, Some(r), &mut touched),
                Resource::TrafficPolicy(r) => self.set_policy(&name, Some(r), &mut touched),
                Resource::Mesh(r) => self.set_mesh(r, &mut touched),
            }
        }
        touched
    }

    fn set_service(&mut self, name: &Name, new: Option<v1::Service>, touched: &mut Touched) {
        if replace(&mut self.services, name, new).is_some() {
            touched.services.insert(Name::clone(name));
        }
    }

    fn set_workload(&mut self, name: &Name, new: Option<v1::Workload>, touched: &mut Touched) {
        if let Some((old, new)) = replace(&mut self.workloads, name, new) {
            touched.workloads.insert(Name::clone(name));
            self.members.replace(name, &memberships(old.as_deref()), &memberships(new.as_deref()));
        }
    }

    fn set_route(&mut self, name: &Name, new: Option<v1::HttpRoute>, touched: &mut Touched) {
        if let Some((old, new)) = replace(&mut self.routes, name, new) {
            touched.routes.insert(Name::clone(name));
            let (before, after) = (parents(old.as_deref()), parents(new.as_deref()));
            self.children.replace(name, &before, &after);
            touched.attached.extend(before.into_iter().chain(after));
            self.senders.replace(name, &backends(old.as_deref()), &backends(new.as_deref()));
        }
    }

    fn set_policy(&mut self, name: &Name, new: Option<v1::TrafficPolicy>, touched: &mut Touched) {
        if let Some((old, new)) = replace(&mut self.policies, name, new) {
            touched.policies.insert(Name::clone(name));
            let (before, after) = (targets(old.as_deref()), targets(new.as_deref()));
            self.on_service.replace(name, &before, &after);
            touched.attached.extend(before.into_iter().chain(after));
        }
    }

    fn set_mesh(&mut self, new: v1::Mesh, touched: &mut Touched) {
        touched.mesh |= self.mesh != new;
        self.mesh = new;
    }

    /// The removals that make this model hold nothing but what `upserts` names: for a full sync.
    pub fn all_but(&self, upserts: &[Resource]) -> Vec<(Kind, String)> {
        let stay: BTreeSet<(Kind, Name)> = upserts.iter().map(|r| (r.kind(), r.name())).collect();
        Kind::ALL
            .into_iter()
            .flat_map(|kind| self.names(kind).into_iter().map(move |name| (kind, name)))
            .filter(|key| !stay.contains(key))
            .map(|(kind, name)| (kind, name.to_string()))
            .collect()
    }

    /// The names held of a kind, in order.
    pub fn names(&self, kind: Kind) -> Vec<Name> {
        fn sorted<T>(held: &HashMap<Name, T>) -> Vec<Name> {
            let mut names: Vec<Name> = held.keys().map(Arc::clone).collect();
            names.sort_unstable();
            names
        }
        match kind {
            Kind::Service => sorted(&self.services),
            Kind::Workload => sorted(&self.workloads),
            Kind::HttpRoute => sorted(&self.routes),
            Kind::TrafficPolicy => sorted(&self.policies),
            Kind::Mesh => vec![Name::from("mesh")],
        }
    }

    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&Arc<v1::Service>> {
        self.services.get(name)
    }

    /// The workload of that name.
    pub fn workload(&self, name: &str) -> Option<&Arc<v1::Workload>> {
        self.workloads.get(name)
    }

    /// The route of that name.
    pub fn route(&self, name: &str) -> Option<&Arc<v1::HttpRoute>> {
        self.routes.get(name)
    }

    /// The policy of that name.
    pub fn policy(&self, name: &str) -> Option<&Arc<v1::TrafficPolicy>> {
        self.policies.get(name)
    }

    /// The mesh; all defaults until it was told.
    pub fn mesh(&self) -> &v1::Mesh {
        &self.mesh
    }

    pub(crate) fn members(&self, service: &str) -> impl Iterator<Item = &Name> {
        self.members.of(service)
    }

    pub(crate) fn children(&self, service: &str) -> impl Iterator<Item = &Name> {
        self.children.of(service)
    }

    pub(crate) fn senders(&self, service: &str) -> impl Iterator<Item = &Name> {
        self.senders.of(service)
    }

    pub(crate) fn policies_on(&self, service: &str) -> impl Iterator<Item = &Name> {
        self.on_service.of(service)
    }
}

/// A resource before and after.
type Change<T> = (Option<Arc<T>>, Option<Arc<T>>);

/// Puts or removes; `None`: nothing changed.
fn replace<T: PartialEq>(held: &mut HashMap<Name, Arc<T>>, name: &Name, new: Option<T>) -> Option<Change<T>> {
    let Some(new) = new else { return held.remove(name).map(|old| (Some(old), None)) };
    if held.get(name).is_some_and(|old| **old == new) {
        return None;
    }
    let new = Arc::new(new);
    Some((held.insert(Name::clone(name), Arc::clone(&new)), Some(new)))
}

fn memberships(workload: Option<&v1::Workload>) -> BTreeSet<Name> {
    let all = workload.map_or(&[][..], |w| &w.services);
    all.iter().map(|s| join(&s.namespace, &s.service)).collect()
}

/// Services that a route is attached to.
pub(crate) fn parents(route: Option<&v1::HttpRoute>) -> BTreeSet<Name> {
    let all = route.map_or(&[][..], |r| &r.parents);
    all.iter().map(|p| join(&p.namespace, &p.service)).collect()
}

fn backends(route: Option<&v1::HttpRoute>) -> BTreeSet<Name> {
    let rules = route.map_or(&[][..], |r| &r.rules);
    let all = rules.iter().flat_map(|rule| &rule.backends).filter_map(|b| b.backend.as_ref());
    all.map(|b| join(&b.namespace, &b.service)).collect()
}

fn targets(policy: Option<&v1::TrafficPolicy>) -> BTreeSet<Name> {
    policy.map_or_else(BTreeSet::new, |p| p.targets.iter().map(|t| join(&p.namespace, &t.service)).collect())
}
