//! What agents should have, and which stream has yet to hear of which name.
//!
//! One lock guards contents, revision and all dirty sets: a stream takes its dirty names and reads their
//! contents in one step, so nothing falls between and a revision is never ahead of the contents.
//!
//! Invariant: a stream's backlog is a set of names; a name that changes a thousand times is in it once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mesh_api::resource::Kind;
use mesh_registry::registry::{Delta as Changes, WireResource};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{TYPES, Type};

/// Contents by type and name, with the streams that follow them.
pub struct Hub {
    store_id: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    contents: [BTreeMap<Arc<str>, Arc<WireResource>>; TYPES],
    streams: HashMap<u64, Backlog>,
    next_stream: u64,
}

struct Backlog {
    dirty: [BTreeSet<Arc<str>>; TYPES],
    wake: Arc<Notify>,
}

/// What a stream has to send of one type.
#[derive(Debug, Default)]
pub struct Delta {
    /// Present resources.
    pub changed: Vec<(Arc<str>, Arc<WireResource>)>,
    /// Names that are no more.
    pub removed: Vec<Arc<str>>,
}

/// A stream's place in the hub; leaves it on drop.
pub struct Follower {
    hub: Arc<Hub>,
    id: u64,
    wake: Arc<Notify>,
}

impl Hub {
    /// An empty hub of the store with this id.
    pub fn new(store_id: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { store_id: store_id.into(), inner: Mutex::default() })
    }

    /// `<store id>/<revision>`.
    pub fn system_version(&self, revision: u64) -> String {
        format!("{}/{revision}", self.store_id)
    }

    /// The revision up to which contents are known.
    pub fn revision(&self) -> u64 {
        self.inner.lock().revision
    }

    /// How many objects there are of each kind, in the order of [`Kind::ALL`].
    pub fn counts(&self) -> [usize; Kind::ALL.len()] {
        let inner = self.inner.lock();
        Kind::ALL.map(|kind| inner.contents[Type::Of(kind).index()].len())
    }

    /// Takes changes in and wakes the streams that have something to send.
    pub fn apply(&self, delta: Changes) {
        let changed = delta.changed.into_iter().map(|resource| (resource.key.clone(), Some(resource)));
        let removed = delta.removed.into_iter().map(|key| (key, None));
        let changes: Vec<_> = changed.chain(removed).collect();
        let mut inner = self.inner.lock();
        let Inner { contents, streams, revision, .. } = &mut *inner;
        *revision = delta.revision.max(*revision);
        for (key, resource) in &changes {
            let (kind, name) = (Type::Of(key.kind).index(), Arc::<str>::from(key.wire_name()));
            for backlog in streams.values_mut() {
                backlog.dirty[kind].insert(name.clone());
            }
            match resource {
                Some(resource) => contents[kind].insert(name, resource.clone()),
                None => contents[kind].remove(&name),
            };
        }
        if !changes.is_empty() {
            for backlog in streams.values() {
                backlog.wake.notify_one();
            }
        }
    }

    /// What the control plane itself says from now on, beside the objects of people; `None`: nothing any more.
    /// `revision` is of the write that it follows from.
    pub fn own(&self, of: Type, revision: u64, name: &str, resource: Option<WireResource>) {
        let (kind, name) = (of.index(), Arc::<str>::from(name));
        let mut inner = self.inner.lock();
        inner.revision = revision.max(inner.revision);
        match resource {
            Some(resource) => inner.contents[kind].insert(name.clone(), Arc::new(resource)),
            None => inner.contents[kind].remove(&name),
        };
        for backlog in inner.streams.values_mut() {
            backlog.dirty[kind].insert(name.clone());
            backlog.wake.notify_one();
        }
    }

    /// A new stream, with nothing to send yet.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let wake = Arc::new(Notify::new());
        let mut inner = self.inner.lock();
        let id = inner.next_stream;
        inner.next_stream += 1;
        inner.streams.insert(id, Backlog { dirty: Default::default(), wake: wake.clone() });
        drop(inner);
        Follower { hub: self.clone(), id, wake }
    }
}

impl Follower {
    /// Returns when names became dirty since the last [`Follower::take`].
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Differences between what an agent says it has and what it should have, with the revision. Whatever
    /// was dirty of this type is part of it.
    pub fn first(&self, kind: impl Into<Type>, has: &BTreeMap<String, String>) -> (u64, Delta) {
        let kind = kind.into().index();
        let mut inner = self.hub.inner.lock();
        if let Some(backlog) = inner.streams.get_mut(&self.id) {
            backlog.dirty[kind].clear();
        }
        let contents = &inner.contents[kind];
        let changed = contents
            .iter()
            .filter(|(name, entry)| has.get(&***name).is_none_or(|version| **version != entry.version))
            .map(|(name, entry)| (name.clone(), entry.clone()))
            .collect();
        let removed = has
            .keys()
            .filter(|name| !contents.contains_key(name.as_str()))
            .map(|name| Arc::from(name.as_str()))
            .collect();
        (inner.revision, Delta { changed, removed })
    }

    /// Takes the dirty names of the given types with their contents, and the revision.
    pub fn take(&self, kinds: impl IntoIterator<Item = Type>) -> (u64, Vec<(Type, Delta)>) {
        let mut inner = self.hub.inner.lock();
        let Inner { contents, streams, revision, .. } = &mut *inner;
        let Some(backlog) = streams.get_mut(&self.id) else { return (*revision, Vec::new()) };
        let mut deltas = Vec::new();
        for kind in kinds {
            let names = std::mem::take(&mut backlog.dirty[kind.index()]);
            if names.is_empty() {
                continue;
            }
            let mut delta = Delta::default();
            for name in names {
                match contents[kind.index()].get(&name) {
                    Some(entry) => delta.changed.push((name, entry.clone())),
                    None => delta.removed.push(name),
                }
            }
            deltas.push((kind, delta));
        }
        (*revision, deltas)
    }

    /// Whether one of the given types has dirty names.
    pub fn has_any(&self, kinds: impl IntoIterator<Item = Type>) -> bool {
        let inner = self.hub.inner.lock();
        let Some(backlog) = inner.streams.get(&self.id) else { return false };
        kinds.into_iter().any(|kind| !backlog.dirty[kind.index()].is_empty())
    }

    /// `<store id>/<revision>`.
    pub fn system_version(&self, revision: u64) -> String {
        self.hub.system_version(revision)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.hub.inner.lock().streams.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::resource::Key;

    use super::*;

    fn delta(revision: u64, put: &[(&str, &str)], removed: &[&str]) -> Changes {
        let key = |name: &str| Key::new(Kind::Service, "ns", name);
        let resource = |(name, version): &(&str, &str)| {
            let (version, body) = ((*version).to_owned(), version.as_bytes().to_vec());
            Arc::new(WireResource { key: key(name), version, revision, body })
        };
        Changes {
            revision,
            changed: put.iter().map(resource).collect(),
            removed: removed.iter().map(|name| key(name)).collect(),
        }
    }

    fn taken(follower: &Follower) -> (u64, Vec<String>, Vec<String>) {
        let (revision, deltas) = follower.take(Type::all());
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for (_, delta) in deltas {
            changed.extend(delta.changed.iter().map(|(name, _)| name.to_string()));
            removed.extend(delta.removed.iter().map(ToString::to_string));
        }
        (revision, changed, removed)
    }

    #[test]
    fn many_changes_of_a_name_are_sent_once() {
        let hub = Hub::new("s");
        let follower = hub.follow();
        for turn in 0..100 {
            hub.apply(delta(turn, &[("a", &turn.to_string())], &[]));
        }
        hub.apply(delta(100, &[("b", "x"), ("c", "x")], &["c"]));
        assert_eq!(taken(&follower), (100, vec!["ns/a".into(), "ns/b".into()], vec!["ns/c".into()]));
        assert_eq!(taken(&follower), (100, vec![], vec![]));
    }

    #[test]
    fn a_returning_agent_gets_the_differences() {
        let hub = Hub::new("s");
        hub.apply(delta(1, &[("same", "x"), ("other", "1")], &[]));
        let (_, all) = hub.follow().first(Kind::Service, &BTreeMap::new());
        let has: BTreeMap<_, _> =
            all.changed.iter().map(|(name, entry)| (name.to_string(), entry.version.clone())).collect();
        hub.apply(delta(2, &[("other", "2"), ("new", "x")], &[]));
        let mut has_more = has.clone();
        has_more.insert("gone".into(), "1".into());
        let (revision, delta) = hub.follow().first(Kind::Service, &has_more);
        let names: Vec<_> = delta.changed.iter().map(|(name, _)| &**name).collect();
        assert_eq!((revision, names), (2, vec!["ns/new", "ns/other"]));
        assert_eq!(delta.removed, vec![Arc::from("gone")]);
    }

    #[test]
    fn a_follower_that_left_costs_nothing() {
        let hub = Hub::new("s");
        drop(hub.follow());
        hub.apply(delta(1, &[("a", "x")], &[]));
        assert!(hub.inner.lock().streams.is_empty());
    }
}
