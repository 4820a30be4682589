//! What agents should have, and which stream has yet to hear of which name.
//!
//! One lock guards contents, revision and all dirty sets: a stream takes its dirty names and reads their
//! contents in one step, so nothing falls between and a revision is never ahead of the contents.
//!
//! Invariant: a stream's backlog is a set of names; a name that changes a thousand times is in it once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mesh_api::resource::Kind;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::{Change, KINDS};
use crate::tls::ca::hex;

/// Bytes of the content hash that make a version: equality within one name's history is all it is for.
const VERSION_BYTES: usize = 8;

/// One resource as agents get it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Content hash.
    pub version: Arc<str>,
    /// Encoded message.
    pub content: Arc<[u8]>,
}

/// Contents by type and name, with the streams that follow them.
pub struct Hub {
    store_id: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    contents: [BTreeMap<Arc<str>, Entry>; KINDS],
    streams: HashMap<u64, Backlog>,
    next_stream: u64,
}

struct Backlog {
    dirty: [BTreeSet<Arc<str>>; KINDS],
    wake: Arc<Notify>,
}

/// What a stream has to send of one type.
#[derive(Debug, Default)]
pub struct Delta {
    /// Present resources.
    pub changed: Vec<(Arc<str>, Entry)>,
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

    /// How many resources of each type there are.
    pub fn counts(&self) -> [usize; KINDS] {
        self.inner.lock().contents.each_ref().map(BTreeMap::len)
    }

    /// Takes changes in and wakes the streams that have something to send. Contents equal to what is
    /// there are no change.
    pub fn apply(&self, revision: u64, changes: Vec<Change>) {
        // Hashed before the lock.
        let hashed: Vec<_> = changes
            .into_iter()
            .map(|change| (change.kind, change.name, change.content.map(Entry::new)))
            .collect();
        let mut inner = self.inner.lock();
        let Inner { contents, streams, revision: current, .. } = &mut *inner;
        *current = revision.max(*current);
        let mut woken = false;
        for (kind, name, entry) in hashed {
            let of_kind = &mut contents[kind as usize];
            let before = match entry {
                Some(entry) => {
                    let version = entry.version.clone();
                    of_kind.insert(name.clone(), entry).is_some_and(|old| old.version == version)
                }
                None => of_kind.remove(&name).is_none(),
            };
            if !before {
                woken = true;
                for backlog in streams.values_mut() {
                    backlog.dirty[kind as usize].insert(name.clone());
                }
            }
        }
        if woken {
            streams.values().for_each(|backlog| backlog.wake.notify_one());
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

impl Entry {
    fn new(content: Vec<u8>) -> Self {
        let version = hex(&Sha256::digest(&content)[..VERSION_BYTES]).into();
        Self { version, content: content.into() }
    }
}

impl Follower {
    /// Returns when names became dirty since the last [`Follower::take`].
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Differences between what an agent says it has and what it should have, with the revision. Whatever
    /// was dirty of this type is part of it.
    pub fn first(&self, kind: Kind, has: &BTreeMap<String, String>) -> (u64, Delta) {
        let mut inner = self.hub.inner.lock();
        if let Some(backlog) = inner.streams.get_mut(&self.id) {
            backlog.dirty[kind as usize].clear();
        }
        let contents = &inner.contents[kind as usize];
        let changed = contents
            .iter()
            .filter(|(name, entry)| has.get(&***name).is_none_or(|version| **version != *entry.version))
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
    pub fn take(&self, kinds: impl IntoIterator<Item = Kind>) -> (u64, Vec<(Kind, Delta)>) {
        let mut inner = self.hub.inner.lock();
        let Inner { contents, streams, revision, .. } = &mut *inner;
        let Some(backlog) = streams.get_mut(&self.id) else { return (*revision, Vec::new()) };
        let mut deltas = Vec::new();
        for kind in kinds {
            let names = std::mem::take(&mut backlog.dirty[kind as usize]);
            if names.is_empty() {
                continue;
            }
            let mut delta = Delta::default();
            for name in names {
                match contents[kind as usize].get(&name) {
                    Some(entry) => delta.changed.push((name, entry.clone())),
                    None => delta.removed.push(name),
                }
            }
            deltas.push((kind, delta));
        }
        (*revision, deltas)
    }

    /// Whether one of the given types has dirty names.
    pub fn has_any(&self, kinds: impl IntoIterator<Item = Kind>) -> bool {
        let inner = self.hub.inner.lock();
        let Some(backlog) = inner.streams.get(&self.id) else { return false };
        kinds.into_iter().any(|kind| !backlog.dirty[kind as usize].is_empty())
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
    use super::*;

    fn put(name: &str, content: &str) -> Change {
        Change { kind: Kind::Service, name: name.into(), content: Some(content.into()) }
    }

    fn remove(name: &str) -> Change {
        Change { kind: Kind::Service, name: name.into(), content: None }
    }

    fn taken(follower: &Follower) -> (u64, Vec<String>, Vec<String>) {
        let (revision, deltas) = follower.take(Kind::ALL);
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
            hub.apply(turn, vec![put("a", &turn.to_string())]);
        }
        hub.apply(100, vec![put("b", "x"), put("c", "x"), remove("c")]);
        assert_eq!(taken(&follower), (100, vec!["a".into(), "b".into()], vec!["c".into()]));
        assert_eq!(taken(&follower), (100, vec![], vec![]));
    }

    #[test]
    fn equal_content_is_no_change() {
        let hub = Hub::new("s");
        hub.apply(1, vec![put("a", "x")]);
        let follower = hub.follow();
        hub.apply(2, vec![put("a", "x"), remove("never")]);
        assert!(!follower.has_any(Kind::ALL));
        assert_eq!(hub.revision(), 2);
    }

    #[test]
    fn a_returning_agent_gets_the_differences() {
        let hub = Hub::new("s");
        hub.apply(1, vec![put("same", "x"), put("other", "1")]);
        let (_, all) = hub.follow().first(Kind::Service, &BTreeMap::new());
        let has: BTreeMap<_, _> =
            all.changed.iter().map(|(name, entry)| (name.to_string(), entry.version.to_string())).collect();
        hub.apply(2, vec![put("other", "2"), put("new", "x")]);
        let mut has_more = has.clone();
        has_more.insert("gone".into(), "1".into());
        let (revision, delta) = hub.follow().first(Kind::Service, &has_more);
        let names: Vec<_> = delta.changed.iter().map(|(name, _)| &**name).collect();
        assert_eq!((revision, names), (2, vec!["new", "other"]));
        assert_eq!(delta.removed, vec![Arc::from("gone")]);
    }

    #[test]
    fn a_follower_that_left_costs_nothing() {
        let hub = Hub::new("s");
        drop(hub.follow());
        hub.apply(1, vec![put("a", "x")]);
        assert!(hub.inner.lock().streams.is_empty());
    }
}
