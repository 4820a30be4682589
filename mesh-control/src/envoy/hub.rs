//! What Envoys should have, and which stream has yet to look.
//!
//! Resources are made when a stream asks, under the registry's lock, and shared.
//!
//! Invariants: the hub's lock is taken under the registry's, never the other way round; a stream's backlog is a set of at
//! most [`NAMES_MAX`] names, then "everything".

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mesh_envoy::catalog::{Catalog, Dirty, Round, Set, Want};
use mesh_envoy::codec::Type;
use mesh_envoy::session::Session;
use mesh_registry::registry::{Delta, Registry};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::proxies::Proxies;

/// Names that a backlog holds one by one.
const NAMES_MAX: usize = 1024;

/// Shared by all streams.
#[derive(Default)]
pub struct Envoys {
    inner: Mutex<Inner>,
    /// What status shows.
    pub proxies: Proxies,
}

#[derive(Default)]
struct Inner {
    catalog: Catalog,
    streams: HashMap<u64, Backlog>,
    next: u64,
}

#[derive(Default)]
struct Backlog {
    all: bool,
    names: BTreeSet<Arc<str>>,
    wake: Arc<Notify>,
}

/// A stream's place; leaves it on drop.
pub struct Follower {
    hub: Arc<Envoys>,
    id: u64,
    wake: Arc<Notify>,
}

impl Envoys {
    /// The registry has changed; called under its lock.
    pub fn changed(&self, delta: &Delta) {
        let mut inner = self.inner.lock();
        let Inner { catalog, streams, .. } = &mut *inner;
        let dirty = catalog.changed(delta);
        for backlog in streams.values_mut() {
            match &dirty {
                Dirty::Nothing => return,
                Dirty::Endpoints(names) if backlog.names.len() + names.len() <= NAMES_MAX => {
                    backlog.names.extend(names.iter().cloned());
                }
                _ => backlog.all = true,
            }
            backlog.wake.notify_one();
        }
    }

    /// A new stream, with nothing to look at yet.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let wake = Arc::new(Notify::new());
        let mut inner = self.inner.lock();
        let id = inner.next;
        inner.next += 1;
        inner.streams.insert(id, Backlog { wake: wake.clone(), ..Backlog::default() });
        drop(inner);
        Follower { hub: self.clone(), id, wake }
    }

    /// What a node of a type should have of a type of resource.
    pub fn wanted(&self, registry: &Registry, node_type: &str, of: Type, want: &Want) -> Set {
        self.inner.lock().catalog.wanted(&Round::new(registry), node_type, of, want)
    }

    /// How many objects are for a node type, and what of them could not be made into anything.
    pub fn about(&self, registry: &Registry, node_type: &str) -> (usize, Vec<String>) {
        let node = self.inner.lock().catalog.node_type(&Round::new(registry), node_type);
        (node.objects, node.problems.clone())
    }

    /// Streams at the moment.
    pub fn streams(&self) -> usize {
        self.inner.lock().streams.len()
    }
}

impl Follower {
    /// Returns when something has changed since the last [`Follower::look`].
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Tells the session what there is now: of `of` anew, of the rest as far as it has changed.
    pub fn look(&self, registry: &Registry, node_type: &str, session: &mut Session, of: Option<Type>) {
        let mut inner = self.hub.inner.lock();
        let Inner { catalog, streams, .. } = &mut *inner;
        let Some(backlog) = streams.get_mut(&self.id) else { return };
        let (all, names) = (std::mem::take(&mut backlog.all), std::mem::take(&mut backlog.names));
        let round = Round::new(registry);
        for one in Type::ALL.into_iter().filter(|one| all || of == Some(*one)) {
            if let Some(want) = session.want(one).cloned() {
                session.set(one, catalog.wanted(&round, node_type, one, &want));
            }
        }
        let names = session.concerned(Type::Endpoints, &names);
        if !all && !names.is_empty() {
            let want = Want { all: false, names };
            let set = catalog.wanted(&round, node_type, Type::Endpoints, &want);
            session.update(Type::Endpoints, &want.names, &set);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.hub.inner.lock().streams.remove(&self.id);
    }
}
