//! Who wants which key of a map, and what is known of the entry that the map has there. Where several want a key,
//! the lowest id has it, and the others are named.
//!
//! Cost: what one id wants, per change. The usual key has one claimant and costs one entry.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::by_id::ById;

/// Something of the snapshot that wants entries in a map.
pub(super) trait Claimant {
    /// Key of the map.
    type Key: Copy + Eq + Hash + Ord;
    /// What is known of an entry of the map; its default: there is none.
    type Held: Copy + Default + Eq;
    /// What it wants, each key once.
    fn keys(&self) -> Vec<Self::Key>;
}

#[derive(Debug)]
struct Claim<H> {
    /// 0: nobody wants it any more.
    owner: u32,
    held: H,
}

#[derive(Debug)]
pub(super) struct Claims<C: Claimant> {
    /// By id, as they were when they last said what they want: shared with the snapshot.
    claimants: ById<C>,
    by_key: HashMap<C::Key, Claim<C::Held>>,
    /// Beside the owner.
    rivals: HashMap<C::Key, BTreeSet<u32>>,
    /// Claims of which something is held.
    held: usize,
}

impl<C: Claimant> Default for Claims<C> {
    fn default() -> Self {
        Self { claimants: ById::default(), by_key: HashMap::new(), rivals: HashMap::new(), held: 0 }
    }
}

impl<C: Claimant> Claims<C> {
    /// Says anew what `id` is and so what it wants, and notes in `touched` what it wanted before or wants now.
    pub fn set(&mut self, id: u32, new: Option<&Arc<C>>, touched: &mut Vec<C::Key>) {
        let before = match new {
            Some(new) => self.claimants.insert(id, Arc::clone(new)),
            None => self.claimants.remove(&id),
        };
        let before = before.map_or_else(Vec::new, |before| before.keys());
        let keys = new.map_or_else(Vec::new, |new| new.keys());
        touched.extend_from_slice(&keys);
        for &key in before.iter().filter(|key| !keys.contains(key)) {
            touched.push(key);
            self.leave(key, id);
        }
        for key in keys {
            let claim =
                self.by_key.entry(key).or_insert_with(|| Claim { owner: 0, held: C::Held::default() });
            match claim.owner {
                0 => claim.owner = id,
                owner if owner == id => {}
                owner => {
                    claim.owner = owner.min(id);
                    self.rivals.entry(key).or_default().insert(owner.max(id));
                }
            }
        }
    }

    /// Makes room for so many keys more.
    pub fn reserve(&mut self, keys: usize) {
        self.by_key.reserve(keys);
    }

    /// Who has the key, and what is held of its entry.
    pub fn of(&self, key: C::Key) -> (Option<u32>, C::Held) {
        let claim = self.by_key.get(&key);
        claim.map_or_else(Default::default, |claim| (Some(claim.owner).filter(|id| *id != 0), claim.held))
    }

    /// Notes what is held of an entry, or (the default) that there is none any more; what was held.
    pub fn hold(&mut self, key: C::Key, held: C::Held) -> C::Held {
        let none = C::Held::default();
        let before = match self.by_key.entry(key) {
            Entry::Occupied(entry) if held == none && entry.get().owner == 0 => entry.remove().held,
            Entry::Occupied(mut entry) => std::mem::replace(&mut entry.get_mut().held, held),
            Entry::Vacant(_) if held == none => none,
            Entry::Vacant(entry) => {
                entry.insert(Claim { owner: 0, held });
                none
            }
        };
        self.held += usize::from(held != none);
        self.held -= usize::from(before != none);
        before
    }

    /// Entries that are held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Their keys.
    pub fn held_keys(&self) -> impl Iterator<Item = C::Key> + '_ {
        self.by_key.iter().filter(|(_, claim)| claim.held != C::Held::default()).map(|(key, _)| *key)
    }

    /// Who wants it as well, in order.
    pub fn rivals(&self, key: C::Key) -> impl Iterator<Item = u32> + '_ {
        // As a rule there are none at all.
        let rivals = if self.rivals.is_empty() { None } else { self.rivals.get(&key) };
        rivals.into_iter().flatten().copied()
    }

    /// All that may want anything.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.claimants.keys()
    }

    fn leave(&mut self, key: C::Key, id: u32) {
        let Entry::Occupied(mut claim) = self.by_key.entry(key) else { return };
        let owned = claim.get().owner == id;
        if let Entry::Occupied(mut others) = self.rivals.entry(key) {
            if owned {
                claim.get_mut().owner = others.get_mut().pop_first().unwrap_or(0);
            } else {
                others.get_mut().remove(&id);
            }
            if others.get().is_empty() {
                others.remove();
            }
        } else if owned {
            claim.get_mut().owner = 0;
        }
        if claim.get().owner == 0 && claim.get().held == C::Held::default() {
            claim.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Claimant for Vec<u8> {
        type Key = u8;
        type Held = u8;
        fn keys(&self) -> Self {
            self.clone()
        }
    }

    fn set(claims: &mut Claims<Vec<u8>>, id: u32, keys: &[u8]) -> Vec<u8> {
        let mut touched = Vec::new();
        claims.set(id, Some(&Arc::new(keys.to_vec())), &mut touched);
        touched.sort_unstable();
        touched
    }

    fn owner(claims: &Claims<Vec<u8>>, key: u8) -> Option<u32> {
        claims.of(key).0
    }

    #[test]
    fn the_lowest_id_has_the_key_and_the_next_inherits_it() {
        let mut claims = Claims::default();
        assert_eq!(set(&mut claims, 5, &[1, 2]), [1, 2]);
        set(&mut claims, 7, &[2]);
        set(&mut claims, 3, &[2, 3]);
        assert_eq!(owner(&claims, 2), Some(3));
        assert_eq!(claims.rivals(2).collect::<Vec<_>>(), [5, 7]);
        assert_eq!(set(&mut claims, 3, &[]), [2, 3]);
        assert_eq!((owner(&claims, 2), owner(&claims, 3)), (Some(5), None));
        set(&mut claims, 7, &[]);
        assert_eq!(claims.rivals(2).count(), 0);
        // A second time changes nothing: an owner is not its own rival.
        set(&mut claims, 5, &[2]);
        assert_eq!((owner(&claims, 2), claims.rivals(2).count(), owner(&claims, 1)), (Some(5), 0, None));
    }

    #[test]
    fn what_is_held_is_known_whoever_wants_it() {
        let mut claims = Claims::default();
        assert_eq!((claims.hold(1, 9), claims.hold(2, 0), claims.of(1), claims.held()), (0, 0, (None, 9), 1));
        set(&mut claims, 5, &[1, 2]);
        assert_eq!((claims.of(1), claims.of(2), claims.hold(2, 4)), ((Some(5), 9), (Some(5), 0), 0));
        set(&mut claims, 5, &[]);
        assert_eq!((claims.of(1), claims.held(), claims.hold(1, 0), claims.held()), ((None, 9), 2, 9, 1));
        assert_eq!(claims.held_keys().collect::<Vec<_>>(), [2]);
        claims.hold(2, 0);
        assert!(claims.by_key.is_empty() && claims.held() == 0);
    }
}
