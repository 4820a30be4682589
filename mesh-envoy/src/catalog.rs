//! What there is to be told: by node type, and by name of a service's port.
//!
//! Nothing is made before somebody asks for it; what was made is kept until a change may have made it another. An
//! endpoint's change touches the assignments that it is or was in, a Service's what is made of it, anything else (routes,
//! policies) all of it: these are rare.
//!
//! Invariant: asked between two changes, it gives the same resources: all streams of a node type share them.
//! Not here: who has been told what (session).

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mesh_api::proto::v1;
use mesh_api::resource::{Key, Kind, Resource as Object, Spec};
use mesh_registry::registry::{Delta, Registry};
use prost::Message;
use serde_json::Value;

use crate::check::raw;
use crate::codec::{Resource, Type, encode};
use crate::gateway::gateway;
use crate::look::{Look, Target};
use crate::template::{self, Known};
use crate::{cluster, endpoints, grpc};

/// Resources by name.
pub type Set = BTreeMap<Arc<str>, Arc<Resource>>;

/// Problems of a node type that are kept.
const PROBLEMS_MAX: usize = 16;

/// Which resources of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Everything that the node type has.
    pub all: bool,
    /// And these.
    pub names: BTreeSet<Arc<str>>,
}

/// What a change may have touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Nothing of what was made.
    Nothing,
    /// Assignments of these names.
    Endpoints(BTreeSet<Arc<str>>),
    /// Anything.
    All,
}

/// What was made.
#[derive(Default)]
pub struct Catalog {
    types: HashMap<String, Arc<NodeType>>,
    made: HashMap<(Type, Arc<str>), Made>,
    /// Assignments by the workloads that are in them.
    serving: HashMap<String, BTreeSet<Arc<str>>>,
}

struct Made {
    resource: Arc<Resource>,
    service: (String, String),
    workloads: BTreeSet<String>,
}

/// What nodes of a type have beside the ports that they name.
#[derive(Debug, Default)]
pub struct NodeType {
    /// Objects that are for it.
    pub objects: usize,
    own: [Set; Type::ALL.len()],
    targets: BTreeSet<Target>,
    /// Services that what it has depends on.
    services: BTreeSet<(String, String)>,
    /// Services whose endpoints stand in templates, and the workloads that are told there.
    templated: BTreeSet<(String, String)>,
    workloads: BTreeSet<String>,
    /// What of the objects could not be made into anything.
    pub problems: Vec<String>,
}

/// The registry for one round of asking.
pub struct Round<'r> {
    registry: &'r Registry,
    look: OnceCell<Look<'r>>,
}

impl<'r> Round<'r> {
    /// Costs nothing until something is to be made.
    pub fn new(registry: &'r Registry) -> Self {
        Self { registry, look: OnceCell::new() }
    }

    fn look(&self) -> &Look<'r> {
        self.look.get_or_init(|| Look::new(self.registry))
    }
}

impl Catalog {
    /// What a node of this type that wants this should have.
    pub fn wanted(&mut self, round: &Round<'_>, node_type: &str, of: Type, want: &Want) -> Set {
        let node = self.node_type(round, node_type);
        let mut set = Set::new();
        if want.all {
            set.clone_from(&node.own[of.index()]);
            if matches!(of, Type::Cluster | Type::Endpoints) {
                for target in &node.targets {
                    let name = Arc::<str>::from(target.to_string());
                    if let (false, Some(made)) = (set.contains_key(&name), self.port(round, of, &name)) {
                        set.insert(name, made);
                    }
                }
            }
        }
        for name in &want.names {
            if set.contains_key(name) {
                continue;
            }
            let own = node.own[of.index()].get(name).cloned();
            if let Some(resource) = own.or_else(|| self.port(round, of, name)) {
                set.insert(name.clone(), resource);
            }
        }
        set
    }

    /// What nodes of a type have.
    pub fn node_type(&mut self, round: &Round<'_>, name: &str) -> Arc<NodeType> {
        if let Some(node) = self.types.get(name) {
            return node.clone();
        }
        let mut objects: Vec<_> = (round.registry.list(Kind::EnvoyResources))
            .filter(|(_, object)| type_of(object) == Some(name))
            .map(|(_, object)| &**object)
            .collect();
        if objects.is_empty() {
            // Not kept: names of types come from outside.
            return Arc::default();
        }
        objects.sort_by_key(|object| (object.metadata.created_ms, object.key()));
        let node = Arc::new(NodeType::new(round.look(), &objects));
        self.types.insert(name.to_owned(), node.clone());
        node
    }

    /// A resource that goes by a port's name.
    fn port(&mut self, round: &Round<'_>, of: Type, name: &Arc<str>) -> Option<Arc<Resource>> {
        let place = (of, name.clone());
        if let Some(made) = self.made.get(&place) {
            return Some(made.resource.clone());
        }
        let target = Target::parse(name)?;
        let look = round.look();
        let mut workloads = BTreeSet::new();
        let json = match of {
            Type::Cluster => cluster::cluster(look, &target)?,
            Type::Endpoints => {
                let (json, found) = endpoints::assignment(look, &target)?;
                workloads = found;
                json
            }
            Type::Listener => grpc::listener(look, &target)?,
            Type::Route => grpc::route_configuration(look, &target)?,
            Type::Secret => return None,
        };
        // What is generated is known to the codec: tests prove each form.
        let resource = Arc::new(encode(of, json).ok()?);
        for workload in &workloads {
            self.serving.entry(workload.clone()).or_default().insert(name.clone());
        }
        let service = (target.namespace, target.service);
        self.made.insert(place, Made { resource: resource.clone(), service, workloads });
        Some(resource)
    }

    /// Forgets what a change may have made another.
    pub fn changed(&mut self, delta: &Delta) -> Dirty {
        let (mut names, mut all) = (BTreeSet::new(), false);
        for resource in &delta.changed {
            match resource.key.kind {
                Kind::Workload => {
                    let services = v1::Workload::decode(&*resource.body).map(|workload| workload.services);
                    all |= self.moved(&resource.key, &services.unwrap_or_default(), &mut names);
                }
                kind => all |= self.replaced(kind, &resource.key),
            }
        }
        for key in &delta.removed {
            match key.kind {
                Kind::Workload => all |= self.moved(key, &[], &mut names),
                kind => all |= self.replaced(kind, key),
            }
        }
        for name in &names {
            self.forget(name);
        }
        match (all, names.is_empty()) {
            (true, _) => Dirty::All,
            (false, false) => Dirty::Endpoints(names),
            (false, true) => Dirty::Nothing,
        }
    }

    /// A workload serves these now; whether a template has it.
    fn moved(&mut self, key: &Key, now: &[v1::WorkloadService], names: &mut BTreeSet<Arc<str>>) -> bool {
        let workload = key.wire_name();
        names.extend(self.serving.get(&workload).into_iter().flatten().cloned());
        for served in now {
            let port = u16::try_from(served.service_port).unwrap_or_default();
            let name = Arc::from(Target::new(&served.namespace, &served.service, port).to_string());
            if self.made.contains_key(&(Type::Endpoints, Arc::clone(&name))) {
                names.insert(name);
            }
        }
        let told = |node: &NodeType| {
            let is = |served: &v1::WorkloadService| {
                node.templated.contains(&(served.namespace.clone(), served.service.clone()))
            };
            node.workloads.contains(&workload) || now.iter().any(is)
        };
        let before = self.types.len();
        self.types.retain(|_, node| !told(node));
        self.types.len() < before
    }

    fn forget(&mut self, name: &Arc<str>) {
        let Some(made) = self.made.remove(&(Type::Endpoints, name.clone())) else { return };
        self.leave(name, &made.workloads);
    }

    fn leave(&mut self, name: &Arc<str>, workloads: &BTreeSet<String>) {
        for workload in workloads {
            if let Some(serving) = self.serving.get_mut(workload) {
                serving.remove(name);
                if serving.is_empty() {
                    self.serving.remove(workload);
                }
            }
        }
    }

    /// Something that is no workload is another now; whether that is anything to us.
    fn replaced(&mut self, kind: Kind, key: &Key) -> bool {
        match kind {
            Kind::Service => {
                let service = (key.namespace.clone(), key.name.clone());
                let gone: Vec<_> = self
                    .made
                    .extract_if(|_, made| made.service == service)
                    .map(|((_, name), made)| (name, made.workloads))
                    .collect();
                for (name, workloads) in gone {
                    self.leave(&name, &workloads);
                }
                self.types.retain(|_, node| !node.services.contains(&service));
                true
            }
            Kind::EnvoyResources | Kind::Mesh => {
                self.types.clear();
                true
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TrafficPolicy => {
                self.types.clear();
                self.made.clear();
                self.serving.clear();
                true
            }
            _ => false,
        }
    }
}

/// The type of nodes that an object is for.
pub fn type_of(object: &Object) -> Option<&str> {
    match &object.spec {
        Spec::EnvoyResources(spec) => Some(spec.node_type.as_deref().unwrap_or(&object.metadata.name)),
        _ => None,
    }
}

impl NodeType {
    fn new(look: &Look<'_>, objects: &[&Object]) -> Self {
        let mut node = Self { objects: objects.len(), ..Self::default() };
        // What people wrote comes before what is made for them.
        for object in objects {
            node.add_raw(look, object);
        }
        for object in objects {
            let Spec::EnvoyResources(spec) = &object.spec else { continue };
            let Some(shown) = &spec.gateway else { continue };
            let (namespace, name) = (&object.metadata.namespace, &object.metadata.name);
            let made = gateway(look, namespace, name, shown);
            node.targets.extend(made.targets);
            node.services.extend(made.services);
            node.add(object, Type::Listener, made.listener);
            node.add(object, Type::Route, made.routes);
            if let Some(secret) = made.secret {
                node.add(object, Type::Secret, secret);
            }
        }
        node
    }

    fn add_raw(&mut self, look: &Look<'_>, object: &Object) {
        let Spec::EnvoyResources(spec) = &object.spec else { return };
        for of in Type::ALL {
            for json in raw(spec, of) {
                if !template::is_template(json) {
                    self.add(object, of, json.clone());
                    continue;
                }
                let (services, workloads) = (BTreeSet::new(), BTreeSet::new());
                let mut known = Known { look, services, workloads };
                let filled = template::fill(json, &mut known);
                self.services.extend(known.services.iter().cloned());
                self.templated.extend(known.services);
                self.workloads.extend(known.workloads);
                match filled {
                    Ok(json) => self.add(object, of, json),
                    Err(bad) => {
                        let text = format!("{}: a resource of {}: {bad}", object.key(), of.plural());
                        self.problem(text);
                    }
                }
            }
        }
    }

    /// The first of a name stays.
    fn add(&mut self, object: &Object, of: Type, json: Value) {
        match encode(of, json) {
            Ok(resource) => {
                let own = &mut self.own[of.index()];
                if own.contains_key(&resource.name) {
                    let name = &resource.name;
                    let text = format!("{}: {} {name} is that of an older object", object.key(), of.plural());
                    self.problem(text);
                    return;
                }
                own.insert(resource.name.clone(), Arc::new(resource));
            }
            Err(bad) => self.problem(format!("{}: {}: {bad}", object.key(), of.plural())),
        }
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }

    /// Its own resources of a type.
    pub fn own(&self, of: Type) -> &Set {
        &self.own[of.index()]
    }
}
