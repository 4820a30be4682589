//! A bounded, sharded table of histograms by key. (The `*Vec` types of the prometheus crate merge label
//! values that concatenate alike, and grow without a bound.)
//!
//! What finds no room is counted in one overflow histogram, never dropped; what nobody has used for an hour
//! makes room.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const SHARDS: usize = 8;
const IDLE: Duration = Duration::from_hours(1);

/// A histogram: counts by bucket, not cumulative; the last has no bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram<const N: usize> {
    /// Counts by bucket.
    pub buckets: [u64; N],
    /// Count of all.
    pub count: u64,
    /// Sum of all.
    pub sum: f64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [0; N], count: 0, sum: 0.0 }
    }
}

impl<const N: usize> Histogram<N> {
    fn record(&mut self, bounds: &[f64], value: f64) {
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len()).min(N - 1);
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum += value;
    }
}

struct Entry<const N: usize> {
    histogram: Histogram<N>,
    used: Instant,
}

type Shard<K, const N: usize> = Mutex<HashMap<K, Entry<N>>>;

/// The table.
pub struct Table<K, const N: usize> {
    bounds: &'static [f64],
    per_shard: usize,
    hasher: RandomState,
    shards: [Shard<K, N>; SHARDS],
    overflow: Mutex<Histogram<N>>,
}

impl<K: Hash + Eq + Clone, const N: usize> Table<K, N> {
    /// At most `series` keys; `N` is one more than there are `bounds`.
    pub fn new(bounds: &'static [f64], series: usize) -> Self {
        Self {
            bounds,
            per_shard: series.div_ceil(SHARDS),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
            overflow: Mutex::default(),
        }
    }

    /// Counts one.
    pub fn record(&self, key: K, value: f64, now: Instant) {
        let shard = &self.shards[self.hasher.hash_one(&key) as usize % SHARDS];
        let mut entries = shard.lock();
        if let Some(entry) = entries.get_mut(&key) {
            entry.histogram.record(self.bounds, value);
            entry.used = now;
            return;
        }
        if entries.len() >= self.per_shard {
            entries.retain(|_, entry| now.saturating_duration_since(entry.used) < IDLE);
        }
        if entries.len() >= self.per_shard {
            self.overflow.lock().record(self.bounds, value);
            return;
        }
        let mut histogram = Histogram::default();
        histogram.record(self.bounds, value);
        entries.insert(key, Entry { histogram, used: now });
    }

    /// Everything, in no order; `None`: what found no room.
    pub fn read(&self) -> Vec<(Option<K>, Histogram<N>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().iter().map(|(key, entry)| (Some(key.clone()), entry.histogram.clone())));
        }
        let overflow = self.overflow.lock().clone();
        if overflow.count > 0 {
            all.push((None, overflow));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_concatenate_alike_stay_apart() {
        let table: Table<(String, String), 3> = Table::new(&[1.0, 2.0], 100);
        let now = Instant::now();
        table.record(("ab".into(), "c".into()), 0.5, now);
        table.record(("a".into(), "bc".into()), 2.5, now);
        let all = table.read();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|(_, h)| h.count == 1));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_idle_keys_make_room() {
        let table: Table<u32, 2> = Table::new(&[1.0], 16);
        let now = Instant::now();
        for key in 0..1000 {
            table.record(key, 0.5, now);
        }
        let all = table.read();
        assert_eq!(all.iter().map(|(_, h)| h.count).sum::<u64>(), 1000);
        assert!(all.len() <= 17);
        table.record(5000, 0.5, now + IDLE);
        assert!(table.read().iter().any(|(key, _)| *key == Some(5000)));
    }

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket() {
        let table: Table<u32, 3> = Table::new(&[1.0, 2.0], 16);
        let now = Instant::now();
        for value in [1.0, 1.5, 9.0] {
            table.record(1, value, now);
        }
        assert_eq!(table.read()[0].1.buckets, [1, 1, 1]);
    }
}
