//! Things by their numbers, shared in structure: a copy costs next to nothing, a change of one copies what leads to it.
//!
//! Numbers are given out from 1 on and used again, so that what has them is dense: three levels of
//! [`WIDTH`] slots, eight bytes a thing. A hash trie takes ten times as much, and an array would be copied whole.

use std::fmt;
use std::sync::Arc;

/// Slots of a block.
const WIDTH: usize = 32;
const BITS: u32 = WIDTH.trailing_zeros();

struct Block<T>([Option<Arc<T>>; WIDTH]);

impl<T> Default for Block<T> {
    fn default() -> Self {
        Self([const { None }; WIDTH])
    }
}

impl<T> Clone for Block<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Block<T> {
    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// Number → thing.
pub struct ById<T> {
    blocks: Vec<Option<Arc<Block<Block<T>>>>>,
    len: usize,
}

impl<T> Default for ById<T> {
    fn default() -> Self {
        Self { blocks: Vec::new(), len: 0 }
    }
}

impl<T> Clone for ById<T> {
    fn clone(&self) -> Self {
        Self { blocks: self.blocks.clone(), len: self.len }
    }
}

impl<T: fmt::Debug> fmt::Debug for ById<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T: PartialEq> PartialEq for ById<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

/// Where a number's slot is: outermost first.
fn place(id: u32) -> [usize; 3] {
    [(id >> (2 * BITS)) as usize, (id >> BITS) as usize % WIDTH, id as usize % WIDTH]
}

impl<T> ById<T> {
    /// The thing of that number.
    pub fn get(&self, id: &u32) -> Option<&Arc<T>> {
        let [a, b, c] = place(*id);
        self.blocks.get(a)?.as_ref()?.0[b].as_ref()?.0[c].as_ref()
    }

    /// Is there one?
    pub fn contains_key(&self, id: &u32) -> bool {
        self.get(id).is_some()
    }

    /// Inserts or replaces; what was there.
    pub fn insert(&mut self, id: u32, thing: Arc<T>) -> Option<Arc<T>> {
        let [a, b, c] = place(id);
        if self.blocks.len() <= a {
            // Exactly: it is never long.
            self.blocks.reserve_exact(a + 1 - self.blocks.len());
            self.blocks.resize_with(a + 1, || None);
        }
        let outer = Arc::make_mut(self.blocks[a].get_or_insert_default());
        let inner = Arc::make_mut(outer.0[b].get_or_insert_default());
        let before = inner.0[c].replace(thing);
        self.len += usize::from(before.is_none());
        before
    }

    /// Removes; what was there.
    pub fn remove(&mut self, id: &u32) -> Option<Arc<T>> {
        if !self.contains_key(id) {
            return None;
        }
        let [a, b, c] = place(*id);
        let outer = Arc::make_mut(self.blocks[a].get_or_insert_default());
        let inner = Arc::make_mut(outer.0[b].get_or_insert_default());
        let before = inner.0[c].take();
        if inner.is_empty() {
            outer.0[b] = None;
            if outer.is_empty() {
                self.blocks[a] = None;
            }
        }
        self.len -= 1;
        before
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All, in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<T>)> {
        self.blocks.iter().zip(0u32..).flat_map(|(outer, a)| {
            let inner = outer.iter().flat_map(|outer| outer.0.iter().zip(0u32..));
            inner.flat_map(move |(inner, b)| {
                let things = inner.iter().flat_map(|inner| inner.0.iter().zip(0u32..));
                things.filter_map(move |(thing, c)| {
                    Some(((a << (2 * BITS)) | (b << BITS) | c, thing.as_ref()?))
                })
            })
        })
    }

    /// Their numbers, in order.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.iter().map(|(id, _)| id)
    }

    /// The things, in order of their numbers.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.iter().map(|(_, thing)| thing)
    }
}

#[cfg(test)]
impl<T> std::ops::Index<&u32> for ById<T> {
    type Output = Arc<T>;

    fn index(&self, id: &u32) -> &Arc<T> {
        self.get(id).expect("it is there")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_copy_keeps_what_it_had() {
        let mut all = ById::default();
        for id in 1..=100 {
            all.insert(id, Arc::new(id));
        }
        let before = all.clone();
        all.insert(7, Arc::new(700));
        all.remove(&8);
        assert_eq!((before.get(&7).map(|n| **n), before.len()), (Some(7), 100));
        assert_eq!((all.get(&7).map(|n| **n), all.get(&8), all.len()), (Some(700), None, 99));
    }

    #[test]
    fn what_is_empty_takes_no_memory() {
        let mut all = ById::default();
        all.insert(40_000, Arc::new(()));
        all.remove(&40_000);
        assert!(all.is_empty() && all.blocks.iter().all(Option::is_none));
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u32..5000, prop::option::of(0u8..9)), 0..300)) {
            let (mut all, mut model) = (ById::default(), BTreeMap::new());
            for (id, value) in steps {
                let (was, had) = match value {
                    Some(value) => (all.insert(id, Arc::new(value)), model.insert(id, value)),
                    None => (all.remove(&id), model.remove(&id)),
                };
                prop_assert_eq!(was.map(|value| *value), had);
            }
            prop_assert_eq!(all.len(), model.len());
            prop_assert!(all.iter().map(|(id, value)| (id, **value)).eq(model));
        }
    }
}
