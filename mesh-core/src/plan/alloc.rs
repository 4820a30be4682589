//! Which slots of `ENDPOINTS` are free.
//!
//! Best fit over a free list whose neighbours are joined. A freed range rests before it is used again: a
//! reader in the kernel may still hold the entry that pointed there.
//!
//! Invariant: free, resting and taken ranges are disjoint and together are the whole array.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Slots `first .. first + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Range {
    pub first: u32,
    pub len: u32,
}

impl Range {
    fn end(self) -> u32 {
        self.first + self.len
    }
}

/// Why there is no range of that length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Free slots in all.
    pub free: u32,
    /// The longest free range.
    pub longest: u32,
    /// Slots that become free soon.
    pub resting: u32,
}

#[derive(Debug)]
pub(super) struct Allocator {
    capacity: u32,
    /// First slot → length.
    free: BTreeMap<u32, u32>,
    /// The same as (length, first slot).
    by_len: BTreeSet<(u32, u32)>,
    /// In order of the time at which they may be used again.
    resting: VecDeque<(Duration, Range)>,
}

impl Allocator {
    pub fn new(capacity: u32) -> Self {
        let mut new =
            Self { capacity, free: BTreeMap::new(), by_len: BTreeSet::new(), resting: VecDeque::new() };
        new.add(Range { first: 0, len: capacity });
        new
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The shortest free range that is long enough, cut to length.
    pub fn take(&mut self, len: u32) -> Result<Range, NoRoom> {
        let Some(&(found, first)) = self.by_len.range((len, 0)..).next() else {
            return Err(NoRoom {
                free: self.free.values().sum(),
                longest: self.by_len.last().map_or(0, |&(len, _)| len),
                resting: self.resting.iter().map(|(_, r)| r.len).sum(),
            });
        };
        self.cut(Range { first, len: found });
        self.add(Range { first: first + len, len: found - len });
        Ok(Range { first, len })
    }

    /// Takes exactly this range; `false` if any of it is not free.
    pub fn reserve(&mut self, range: Range) -> bool {
        let Some((&first, &len)) = self.free.range(..=range.first).next_back() else { return false };
        let around = Range { first, len };
        if range.len == 0 || u64::from(range.first) + u64::from(range.len) > u64::from(around.end()) {
            return false;
        }
        self.cut(around);
        self.add(Range { first, len: range.first - first });
        self.add(Range { first: range.end(), len: around.end() - range.end() });
        true
    }

    /// Gives a range back, to be used again from `at` on. `at` never falls from call to call.
    pub fn give_back(&mut self, range: Range, at: Duration) {
        if range.len > 0 {
            self.resting.push_back((at, range));
        }
    }

    /// Frees what has rested long enough.
    pub fn settle(&mut self, now: Duration) {
        while let Some(&(at, range)) = self.resting.front()
            && at <= now
        {
            self.resting.pop_front();
            self.join(range);
        }
    }

    /// When the next range will have rested long enough.
    pub fn next_free(&self) -> Option<Duration> {
        self.resting.front().map(|&(at, _)| at)
    }

    fn join(&mut self, mut range: Range) {
        if let Some((&first, &len)) = self.free.range(..range.first).next_back()
            && first + len == range.first
        {
            let before = Range { first, len };
            self.cut(before);
            range = Range { first, len: len + range.len };
        }
        if let Some(&len) = self.free.get(&range.end()) {
            let after = Range { first: range.end(), len };
            self.cut(after);
            range.len += len;
        }
        self.add(range);
    }

    fn add(&mut self, range: Range) {
        if range.len > 0 {
            self.free.insert(range.first, range.len);
            self.by_len.insert((range.len, range.first));
        }
    }

    fn cut(&mut self, range: Range) {
        self.free.remove(&range.first);
        self.by_len.remove(&(range.len, range.first));
    }

    /// Free and resting slots.
    #[cfg(test)]
    pub fn unused(&self) -> (u32, u32) {
        (self.free.values().sum(), self.resting.iter().map(|(_, r)| r.len).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(5);
    const LATER: Duration = Duration::from_secs(6);

    #[test]
    fn a_freed_range_rests_and_joins_its_neighbours() {
        let mut a = Allocator::new(10);
        let ranges: Vec<Range> = (0..5).map(|_| a.take(2).unwrap()).collect();
        assert_eq!(a.take(1), Err(NoRoom { free: 0, longest: 0, resting: 0 }));
        for i in [1, 3, 2] {
            a.give_back(ranges[i], LATER);
        }
        a.settle(NOW);
        assert_eq!(a.take(2), Err(NoRoom { free: 0, longest: 0, resting: 6 }));
        assert_eq!(a.next_free(), Some(LATER));
        a.settle(LATER);
        assert_eq!(a.take(6), Ok(Range { first: 2, len: 6 }));
    }

    #[test]
    fn the_shortest_range_that_fits_is_taken() {
        let mut a = Allocator::new(10);
        assert!(a.reserve(Range { first: 6, len: 1 }));
        assert_eq!(a.take(3), Ok(Range { first: 7, len: 3 }));
        assert_eq!(a.take(7), Err(NoRoom { free: 6, longest: 6, resting: 0 }));
    }

    #[test]
    fn only_what_is_free_can_be_reserved() {
        let mut a = Allocator::new(10);
        assert!(a.reserve(Range { first: 2, len: 3 }));
        for (first, len) in [(4, 2), (0, 3), (9, 2), (u32::MAX, 2), (12, 1), (7, 0)] {
            assert!(!a.reserve(Range { first, len }), "{first}+{len}");
        }
        assert!(a.reserve(Range { first: 0, len: 2 }));
        assert!(a.reserve(Range { first: 5, len: 5 }));
        assert_eq!(a.unused(), (0, 0));
    }
}
