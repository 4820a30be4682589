//! A hash and the array in front of it, written together: the writer's side of `mesh_common::homes`.
//!
//! Every change of the hash makes the home of its key `SHARED` first; [`Homed::move_in`], called now and then,
//! makes homes that have rested `TAKEN` or `EMPTY` again, as the hash is by then. Invariant: a home is written
//! by nobody else, and what stands in it only after it was `SHARED` for `REST`.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use mesh_common::homes::{EMPTY, Home, Lodger, REST, SHARED, TAKEN};

use super::Kernel;
use super::maps::ignore_missing;
use crate::sys::Mapped;

/// How often homes are looked at.
const EVERY: Duration = Duration::from_millis(500);

/// Lets keys move in, for as long as the agent runs.
pub async fn watch(kernel: Arc<Kernel>) {
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        kernel.move_in();
    }
}

/// See the file's head.
pub struct Homed<K: Pod, V: Pod>
where
    Home<K, V>: Pod,
{
    hash: HashMap<MapData, K, V>,
    homes: Mapped<Home<K, V>>,
    /// The keys of the hash, by home.
    held: BTreeSet<(u32, K)>,
    /// Homes to be decided, by when they were left: the oldest first, each once.
    resting: VecDeque<(Instant, u32)>,
    /// The same homes.
    rests: HashSet<u32>,
}

impl<K: Pod + Lodger, V: Pod + PartialEq> Homed<K, V>
where
    Home<K, V>: Pod,
{
    /// Takes over what the maps hold. A home that does not say what the hash says is shared from now on.
    pub fn new(
        hash: HashMap<MapData, K, V>,
        homes: Mapped<Home<K, V>>,
        now: Instant,
    ) -> Result<Self, MapError> {
        let held: BTreeSet<(u32, K)> =
            hash.keys().map(|key| key.map(|key| (key.home(), key))).collect::<Result<_, _>>()?;
        let mut this = Self { hash, homes, held, resting: VecDeque::new(), rests: HashSet::new() };
        for home in 0..this.homes.len() {
            if !this.is_right(home) {
                this.share(home, now);
            }
        }
        Ok(this)
    }

    /// Inserts or replaces.
    pub fn put(&mut self, key: &K, value: &V, now: Instant) -> Result<(), MapError> {
        self.share(key.home(), now);
        self.hash.insert(key, value, 0)?;
        self.held.insert((key.home(), *key));
        Ok(())
    }

    /// Removes, if it is there.
    pub fn remove(&mut self, key: &K, now: Instant) -> Result<(), MapError> {
        if !self.held.contains(&(key.home(), *key)) {
            return Ok(());
        }
        self.share(key.home(), now);
        ignore_missing(self.hash.remove(key))?;
        self.held.remove(&(key.home(), *key));
        Ok(())
    }

    /// Everything.
    pub fn all(&self) -> Result<Vec<(K, V)>, MapError> {
        self.hash.iter().collect()
    }

    /// Entries that programs find at home.
    pub fn at_home(&self) -> u64 {
        let taken = |home: &u32| self.homes.get(*home).is_some_and(|home| home.state == TAKEN);
        (0..self.homes.len()).filter(taken).count() as u64
    }

    /// Lets keys into homes that have rested.
    pub fn move_in(&mut self, now: Instant) {
        while let Some((since, home)) = self.resting.front().copied() {
            if now.saturating_duration_since(since) < REST {
                return;
            }
            self.resting.pop_front();
            self.rests.remove(&home);
            self.decide(home);
        }
    }

    /// Makes the hash answer for a home.
    fn share(&mut self, home: u32, now: Instant) {
        let Some(state) = self.homes.word(home, 0) else { return };
        state.store(SHARED, Ordering::SeqCst);
        // One that rests already is decided when its rest is over, by what the hash holds then.
        if self.rests.insert(home) {
            self.resting.push_back((now, home));
        }
    }

    /// Says of a home that has rested what the hash says.
    fn decide(&self, home: u32) {
        let Some(state) = self.homes.word(home, 0) else { return };
        match self.lodgers(home) {
            (None, _) => state.store(EMPTY, Ordering::SeqCst),
            (Some(key), None) => {
                // The state goes last: what stands behind it is looked at only when it says so.
                if let Ok(value) = self.hash.get(&key, 0)
                    && self.homes.set(home, Home { state: SHARED, key, value })
                {
                    state.store(TAKEN, Ordering::SeqCst);
                }
            }
            (Some(_), Some(_)) => {}
        }
    }

    /// The first two keys that have this home.
    fn lodgers(&self, home: u32) -> (Option<K>, Option<K>) {
        let mut keys = self.held.range((home, K::LOWEST)..).take_while(|(of, _)| *of == home);
        let mut next = || keys.next().map(|(_, key)| *key);
        (next(), next())
    }

    fn is_right(&self, home: u32) -> bool {
        let Some(there) = self.homes.get(home) else { return true };
        match (there.state, self.lodgers(home)) {
            (EMPTY, (None, _)) => true,
            (TAKEN, (Some(key), None)) => {
                there.key == key && self.hash.get(&key, 0).is_ok_and(|value| value == there.value)
            }
            _ => false,
        }
    }
}
