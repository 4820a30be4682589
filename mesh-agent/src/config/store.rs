//! The resources that are in force, as received. Owned by the config task; cloned in O(1) for the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use mesh_core::snapshot::Revision;

use super::resource::{Key, Kind, Raw};

/// Resources by kind and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// Where the control plane's history stands; empty: nothing was received yet.
    pub revision: Revision,
    resources: BTreeMap<Kind, OrdMap<String, Arc<Raw>>>,
}

impl Store {
    /// Empty, at this revision.
    pub fn at(revision: Revision) -> Self {
        Self { revision, ..Self::default() }
    }

    /// Inserts or replaces.
    pub fn put(&mut self, (kind, name): Key, raw: Raw) {
        self.resources.entry(kind).or_default().insert(name, Arc::new(raw));
    }

    /// Removes.
    pub fn remove(&mut self, key: &Key) {
        if let Some(of_kind) = self.resources.get_mut(&key.0) {
            of_kind.remove(&key.1);
        }
    }

    /// One.
    pub fn get(&self, key: &Key) -> Option<&Raw> {
        self.resources.get(&key.0)?.get(&key.1).map(|raw| &**raw)
    }

    /// All of a kind, by name.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&str, &Raw)> {
        self.resources.get(&kind).into_iter().flatten().map(|(name, raw)| (name.as_str(), &**raw))
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.resources.iter().flat_map(|(kind, of_kind)| of_kind.keys().map(|name| (*kind, name.clone())))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.resources.values().map(OrdMap::len).sum()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a stream tells the control plane that it has.
    pub fn versions(&self) -> BTreeMap<Kind, BTreeMap<String, String>> {
        let versions = |of_kind: &OrdMap<String, Arc<Raw>>| {
            of_kind.iter().map(|(name, raw)| (name.clone(), raw.version.clone())).collect()
        };
        self.resources.iter().map(|(kind, of_kind)| (*kind, versions(of_kind))).collect()
    }
}
