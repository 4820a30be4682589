//! Who refers to a name.

use std::collections::{BTreeSet, HashMap};

use super::Name;

/// Name → those that refer to it, in order.
#[derive(Debug)]
pub(super) struct Index<W = Name>(HashMap<Name, BTreeSet<W>>);

impl<W> Default for Index<W> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<W: Ord + Clone> Index<W> {
    /// `who` referred to `before` and now refers to `after`.
    pub fn replace(&mut self, who: &W, before: &BTreeSet<Name>, after: &BTreeSet<Name>) {
        for name in before.difference(after) {
            if let Some(all) = self.0.get_mut(name) {
                all.remove(who);
                if all.is_empty() {
                    self.0.remove(name);
                }
            }
        }
        for name in after.difference(before) {
            self.0.entry(Name::clone(name)).or_default().insert(who.clone());
        }
    }

    /// Those that refer to `name`.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &W> {
        self.0.get(name).into_iter().flatten()
    }
}
