//! All resources held, by kind and name. Cloned in O(1), for the disk.

use std::collections::BTreeMap;

use imbl::OrdMap;

use super::resource::{Raw, Resource};
use super::{Kind, Name};

/// Resources as received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<Kind, OrdMap<Name, Raw>>);

impl Resources {
    /// Inserts, replaces or (`None`) removes; what was there before.
    pub(super) fn set(&mut self, kind: Kind, name: &Name, new: Option<Raw>) -> Option<Raw> {
        let of_kind = self.0.entry(kind).or_default();
        match new {
            Some(new) => of_kind.insert(Name::clone(name), new),
            None => of_kind.remove(name),
        }
    }

    /// The name as it is held: one copy for everybody.
    pub(super) fn name(&self, kind: Kind, name: &str) -> Option<Name> {
        self.0.get(&kind)?.get_key_value(name).map(|(name, _)| Name::clone(name))
    }

    /// One as received.
    pub(super) fn raw(&self, kind: Kind, name: &str) -> Option<&Raw> {
        self.0.get(&kind)?.get(name)
    }

    /// One.
    pub fn get(&self, kind: Kind, name: &str) -> Option<Resource> {
        let (name, raw) = self.0.get(&kind)?.get_key_value(name)?;
        Some(Resource { kind, name: Name::clone(name), raw: raw.clone() })
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &str, &Raw)> {
        self.0.iter().flat_map(|(kind, held)| held.iter().map(|(name, raw)| (*kind, &**name, raw)))
    }

    /// Those of a kind, in order.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = (&Name, &Raw)> {
        self.0.get(&kind).into_iter().flat_map(OrdMap::iter)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.values().map(OrdMap::len).sum()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
