//! Who refers to a name.

use std::collections::{BTreeSet, HashMap};

use super::Name;

/// Name → those that refer to it, in order.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<Name, BTreeSet<Name>>);

impl Index {
    /// `who` referred to `before` and now refers to `after`.
    pub fn replace(&mut self, who: &Name, before: &BTreeSet<Name>, after: &BTreeSet<Name>) {
        for name in before.difference(after) {
            if let Some(all) = self.0.get_mut(name) {
                all.remove(who);
                if all.is_empty() {
                    self.0.remove(name);
                }
            }
        }
        for name in after.difference(before) {
            self.0.entry(Name::clone(name)).or_default().insert(Name::clone(who));
        }
    }

    /// Those that refer to `name`.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &Name> {
        self.0.get(name).into_iter().flatten()
    }
}
