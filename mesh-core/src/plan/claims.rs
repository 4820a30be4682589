//! Who wants which key of a map. Where several do, the lowest id has it, and the others are named.
//!
//! Cost: what one id wants, per change. The usual key has one claimant and costs one entry.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// Something of the snapshot that wants entries in a map.
pub(super) trait Claimant {
    /// Key of the map.
    type Key: Copy + Eq + Hash + Ord;
    /// What it wants, each key once.
    fn keys(&self) -> Vec<Self::Key>;
}

#[derive(Debug)]
pub(super) struct Claims<C: Claimant> {
    /// By id, as they were when they last said what they want: shared with the snapshot.
    claimants: HashMap<u32, Arc<C>>,
    owner: HashMap<C::Key, u32>,
    /// Beside the owner.
    rivals: HashMap<C::Key, BTreeSet<u32>>,
}

impl<C: Claimant> Default for Claims<C> {
    fn default() -> Self {
        Self { claimants: HashMap::new(), owner: HashMap::new(), rivals: HashMap::new() }
    }
}

impl<C: Claimant> Claims<C> {
    /// Says anew what `id` is and so what it wants, and notes in `touched` what it wanted before or wants now.
    pub fn set(&mut self, id: u32, new: Option<&Arc<C>>, touched: &mut BTreeSet<C::Key>) {
        let before = match new {
            Some(new) => self.claimants.insert(id, Arc::clone(new)),
            None => self.claimants.remove(&id),
        };
        let before = before.map_or_else(Vec::new, |before| before.keys());
        let keys = new.map_or_else(Vec::new, |new| new.keys());
        touched.extend(before.iter().chain(&keys).copied());
        for &key in before.iter().filter(|key| !keys.contains(key)) {
            leave(&mut self.owner, &mut self.rivals, key, id);
        }
        for key in keys {
            match self.owner.insert(key, id) {
                Some(other) if other != id => {
                    self.owner.insert(key, other.min(id));
                    self.rivals.entry(key).or_default().insert(other.max(id));
                }
                _ => {}
            }
        }
    }

    /// Who has the key.
    pub fn owner(&self, key: C::Key) -> Option<u32> {
        self.owner.get(&key).copied()
    }

    /// Who wants it as well, in order.
    pub fn rivals(&self, key: C::Key) -> impl Iterator<Item = u32> + '_ {
        self.rivals.get(&key).into_iter().flatten().copied()
    }

    /// All that may want anything.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.claimants.keys().copied()
    }
}

fn leave<K: Copy + Eq + Hash>(
    owner: &mut HashMap<K, u32>,
    rivals: &mut HashMap<K, BTreeSet<u32>>,
    key: K,
    id: u32,
) {
    let mut none_left = false;
    if owner.get(&key) == Some(&id) {
        match rivals.get_mut(&key).and_then(BTreeSet::pop_first) {
            Some(next) => owner.insert(key, next),
            None => owner.remove(&key),
        };
    }
    if let Some(others) = rivals.get_mut(&key) {
        others.remove(&id);
        none_left = others.is_empty();
    }
    if none_left {
        rivals.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Claimant for Vec<u8> {
        type Key = u8;
        fn keys(&self) -> Self {
            self.clone()
        }
    }

    fn set(claims: &mut Claims<Vec<u8>>, id: u32, keys: &[u8]) -> Vec<u8> {
        let mut touched = BTreeSet::new();
        claims.set(id, Some(&Arc::new(keys.to_vec())), &mut touched);
        touched.into_iter().collect()
    }

    #[test]
    fn the_lowest_id_has_the_key_and_the_next_inherits_it() {
        let mut claims = Claims::default();
        assert_eq!(set(&mut claims, 5, &[1, 2]), [1, 2]);
        set(&mut claims, 7, &[2]);
        set(&mut claims, 3, &[2, 3]);
        assert_eq!(claims.owner(2), Some(3));
        assert_eq!(claims.rivals(2).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(set(&mut claims, 3, &[]), [2, 3]);
        assert_eq!((claims.owner(2), claims.owner(3)), (Some(5), None));
        set(&mut claims, 7, &[]);
        assert_eq!(claims.rivals(2).count(), 0);
        // A second time changes nothing: an owner is not its own rival.
        set(&mut claims, 5, &[2]);
        assert_eq!((claims.owner(2), claims.rivals(2).count(), claims.owner(1)), (Some(5), 0, None));
    }
}
