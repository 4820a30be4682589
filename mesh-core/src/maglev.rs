//! Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", 2016): a
//! client keeps its endpoint although others come and go, with nothing remembered.
//!
//! endpoints ──▶ **maglev** ──slots by entry──▶ plan ──▶ rows in `ENDPOINTS` ──▶ `mesh_common::pick`
//!
//! Every endpoint walks the entries in an order of its own, which its name alone decides; they take turns at
//! taking the next free one. One with half the weight has half the turns.
//!
//! Invariants: the same endpoints give the same table in whatever order they are named; every entry is
//! somebody's.

use mesh_common::addr::Addr;
use mesh_common::pick::mix;

/// An endpoint: a number that stands for its name everywhere, and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Of its address and port.
    pub name: u64,
    /// 1 at least.
    pub weight: u64,
}

/// An endpoint by address and port, which are the same on every node.
pub fn item(addr: &Addr, port: u16, weight: u64) -> Item {
    let [a, b, c, d] = addr.map(u64::from);
    let name = mix(mix(a << 32 | b) ^ (c << 32 | d));
    Item { name: mix(name ^ u64::from(port)), weight }
}

/// The item of each of `size` entries, `size` being a prime above their number. Empty where there are none.
pub fn table(items: &[Item], size: u32) -> Vec<u16> {
    let heaviest = items.iter().map(|item| item.weight).max().unwrap_or(0);
    if heaviest == 0 || size < 2 {
        return Vec::new();
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| items[i].name);
    let mut walks: Vec<Walk> = order.iter().map(|&i| Walk::new(items[i], size)).collect();
    let mut entries: Vec<Option<u16>> = vec![None; size as usize];
    let mut free = size;
    while free > 0 {
        for (walk, &item) in walks.iter_mut().zip(&order) {
            // A turn for each `heaviest` of weight gathered.
            walk.gathered += walk.weight;
            if walk.gathered < heaviest {
                continue;
            }
            walk.gathered -= heaviest;
            let entry = walk.next_free(&entries, size);
            entries[entry as usize] = Some(item as u16);
            free -= 1;
            if free == 0 {
                break;
            }
        }
    }
    entries.into_iter().flatten().collect()
}

/// One endpoint's way through the entries.
struct Walk {
    next: u32,
    skip: u32,
    weight: u64,
    gathered: u64,
}

impl Walk {
    fn new(item: Item, size: u32) -> Self {
        let (start, skip) = (mix(item.name), mix(!item.name));
        Self {
            next: (start % u64::from(size)) as u32,
            skip: (skip % u64::from(size - 1)) as u32 + 1,
            weight: item.weight,
            gathered: 0,
        }
    }

    /// `size` is a prime: the walk passes every entry.
    fn next_free(&mut self, entries: &[Option<u16>], size: u32) -> u32 {
        loop {
            let here = self.next;
            self.next = (self.next + self.skip) % size;
            if entries[here as usize].is_none() {
                return here;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::pick::maglev_size;
    use proptest::prelude::*;

    use super::*;

    fn items(weights: &[u64]) -> Vec<Item> {
        weights.iter().zip(0u64..).map(|(&weight, i)| Item { name: mix(i), weight }).collect()
    }

    fn shares(table: &[u16], items: usize) -> Vec<f64> {
        let count = |i| table.iter().filter(|&&t| usize::from(t) == i).count();
        (0..items).map(|i| count(i) as f64 / table.len() as f64).collect()
    }

    proptest! {
        #[test]
        fn shares_follow_the_weights(weights in prop::collection::vec(1u64..=8, 1..60)) {
            let size = maglev_size(weights.len() as u32);
            let table = table(&items(&weights), size);
            prop_assert_eq!(table.len(), size as usize);
            let total: u64 = weights.iter().sum();
            for (share, &weight) in shares(&table, weights.len()).iter().zip(&weights) {
                let want = weight as f64 / total as f64;
                // Two turns more or less than its due.
                let slack = 2.0 / f64::from(size) + want * 0.02;
                prop_assert!((share - want).abs() <= slack, "{share} instead of {want}");
            }
        }

        #[test]
        fn one_that_goes_moves_few_others(count in 2usize..40, gone in 0usize..40) {
            let gone = gone % count;
            let before = items(&vec![1; count]);
            let mut after = before.clone();
            after.remove(gone);
            let size = maglev_size(count as u32);
            let named = |items: &[Item], table: Vec<u16>| -> Vec<u64> {
                table.into_iter().map(|t| items[usize::from(t)].name).collect()
            };
            let (old, new) = (named(&before, table(&before, size)), named(&after, table(&after, size)));
            let moved = old.iter().zip(&new)
                .filter(|(a, b)| a != b && **a != before[gone].name)
                .count();
            // The paper finds about a tenth at most of what need not move.
            prop_assert!(moved as f64 <= 0.25 * f64::from(size), "{moved} of {size}");
        }

        #[test]
        fn the_order_of_the_endpoints_does_not_matter(
            weights in prop::collection::vec(1u64..=5, 1..30), turn in 0usize..30,
        ) {
            let there = items(&weights);
            let mut turned = there.clone();
            turned.rotate_left(turn % weights.len());
            let size = maglev_size(weights.len() as u32);
            let name = |items: &[Item], table: Vec<u16>| -> Vec<u64> {
                table.into_iter().map(|t| items[usize::from(t)].name).collect()
            };
            prop_assert_eq!(name(&there, table(&there, size)), name(&turned, table(&turned, size)));
        }
    }

    #[test]
    fn nobody_is_an_empty_table() {
        assert!(table(&[], 1021).is_empty());
        assert!(table(&[Item { name: 1, weight: 0 }], 1021).is_empty());
    }
}
