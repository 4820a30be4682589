//! When which certificate is asked for: pure, `now` and randomness (uniform in 0..1) are arguments.
//!
//! - A new identity at once; a certificate at half of its life, give or take a tenth, so that the nodes of a mesh
//!   do not come in step.
//! - What failed, after a pause that doubles from [`FIRST_PAUSE`] to [`LAST_PAUSE`].
//! - What an older key of the authority signed, within [`SPREAD`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Pause after the first failure.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause after failures.
pub const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Within which certificates of an older generation are renewed.
pub const SPREAD: Duration = Duration::from_secs(30);
/// What is due within this time is asked for in one call.
const TOGETHER: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Instant,
    failures: u32,
    /// Of the certificate that is held; `None`: there is none.
    generation: Option<u64>,
}

/// All identities of a node.
#[derive(Debug)]
pub struct Plan<Id> {
    entries: BTreeMap<Id, Entry>,
}

impl<Id> Default for Plan<Id> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<Id: Ord + Clone> Plan<Id> {
    /// These are wanted, and no others; those that are wanted no more.
    pub fn want(&mut self, wanted: &BTreeSet<Id>, now: Instant) -> Vec<Id> {
        let gone: Vec<Id> = self.entries.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        for id in &gone {
            self.entries.remove(id);
        }
        for id in wanted {
            let new = Entry { due: now, failures: 0, generation: None };
            self.entries.entry(id.clone()).or_insert(new);
        }
        gone
    }

    /// There is a certificate already, with so much left of which it is still the first half; `None`: it is past
    /// that. Nothing for what is known to have one.
    pub fn adopt(&mut self, id: &Id, now: Instant, left: Option<Duration>, generation: u64, random: f64) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if entry.generation.is_some() || entry.failures > 0 {
            return;
        }
        entry.generation = Some(generation);
        if let Some(left) = left {
            entry.due = now + left.mul_f64(0.4 + random.clamp(0.0, 1.0) / 10.0);
        }
    }

    /// When something is next due.
    pub fn next(&self) -> Option<Instant> {
        self.entries.values().map(|entry| entry.due).min()
    }

    /// What is due at `now`, or is nearly due where something is; at most `most`.
    pub fn due(&self, now: Instant, most: usize) -> Vec<Id> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let due = self.entries.iter().filter(|(_, entry)| entry.due <= now + TOGETHER);
        due.map(|(id, _)| id.clone()).take(most).collect()
    }

    /// A certificate of `life` came.
    pub fn renewed(&mut self, id: &Id, now: Instant, life: Duration, generation: u64, random: f64) {
        if let Some(entry) = self.entries.get_mut(id) {
            let due = now + life.mul_f64(0.45 + random.clamp(0.0, 1.0) / 10.0);
            *entry = Entry { due, failures: 0, generation: Some(generation) };
        }
    }

    /// None came; how often in a row.
    pub fn failed(&mut self, id: &Id, now: Instant, random: f64) -> u32 {
        let Some(entry) = self.entries.get_mut(id) else { return 0 };
        let step = FIRST_PAUSE.saturating_mul(1 << entry.failures.min(16)).min(LAST_PAUSE);
        entry.due = now + step.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        entry.failures = entry.failures.saturating_add(1);
        entry.failures
    }

    /// Its certificate is good no longer.
    pub fn at_once(&mut self, id: &Id, now: Instant) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.due = now;
        }
    }

    /// The authority signs with this generation of its keys now: what is older is asked for soon.
    pub fn hasten(&mut self, generation: u64, now: Instant, mut random: impl FnMut() -> f64) {
        let older = |entry: &&mut Entry| entry.generation.is_some_and(|held| held < generation);
        for entry in self.entries.values_mut().filter(older) {
            entry.due = entry.due.min(now + SPREAD.mul_f64(random().clamp(0.0, 1.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn wanted(ids: &[&'static str]) -> BTreeSet<&'static str> {
        ids.iter().copied().collect()
    }

    #[test]
    fn new_ones_are_due_at_once_and_later_at_half_their_life() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        assert_eq!(plan.next(), None);
        assert!(plan.want(&wanted(&["a", "b"]), now).is_empty());
        assert_eq!(plan.due(now, 9), ["a", "b"]);
        assert_eq!(plan.due(now, 1), ["a"]);
        plan.renewed(&"a", now, HOUR, 1, 0.0);
        plan.renewed(&"b", now, HOUR, 1, 1.0);
        assert_eq!(plan.next(), Some(now + HOUR.mul_f64(0.45)));
        assert!(plan.due(now + HOUR.mul_f64(0.44), 9).is_empty());
        assert_eq!(plan.due(now + HOUR.mul_f64(0.45), 9), ["a"]);
        assert_eq!(plan.due(now + HOUR.mul_f64(0.55), 9), ["a", "b"]);
    }

    #[test]
    fn failures_pause_longer_and_longer_to_a_bound_and_a_success_forgets_them() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.want(&wanted(&["a"]), now);
        assert_eq!(plan.failed(&"a", now, 1.0), 1);
        assert_eq!(plan.next(), Some(now + FIRST_PAUSE));
        assert_eq!(plan.failed(&"a", now, 0.0), 2);
        assert_eq!(plan.next(), Some(now + FIRST_PAUSE));
        for _ in 0..100 {
            plan.failed(&"a", now, 1.0);
        }
        assert_eq!(plan.next(), Some(now + LAST_PAUSE));
        plan.renewed(&"a", now, HOUR, 1, 0.5);
        assert_eq!(plan.failed(&"a", now, 1.0), 1);
    }

    #[test]
    fn what_is_wanted_no_more_is_named_once() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.want(&wanted(&["a", "b"]), now);
        assert_eq!(plan.want(&wanted(&["b"]), now), ["a"]);
        assert!(plan.want(&wanted(&["b"]), now).is_empty());
        plan.renewed(&"a", now, HOUR, 1, 0.5);
        assert_eq!(plan.failed(&"a", now, 0.5), 0, "a late answer");
    }

    #[test]
    fn a_certificate_from_before_is_not_asked_for_again_before_its_time() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.want(&wanted(&["a", "b"]), now);
        plan.adopt(&"a", now, Some(HOUR), 1, 1.0);
        plan.adopt(&"b", now, None, 1, 1.0);
        assert_eq!(plan.due(now, 9), ["b"]);
        plan.renewed(&"b", now, HOUR, 1, 0.5);
        plan.adopt(&"b", now, Some(HOUR / 60), 1, 0.5);
        assert_eq!(plan.next(), Some(now + HOUR / 2), "once");
    }

    #[test]
    fn older_generations_are_renewed_soon_and_spread() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.want(&wanted(&["a", "b", "new"]), now);
        plan.renewed(&"a", now, HOUR, 1, 0.5);
        plan.renewed(&"b", now, HOUR, 2, 0.5);
        plan.hasten(2, now, || 0.5);
        assert_eq!(plan.due(now, 9), ["new"]);
        plan.renewed(&"new", now, HOUR, 2, 0.5);
        assert_eq!(plan.next(), Some(now + SPREAD / 2));
        assert_eq!(plan.due(now + SPREAD, 9), ["a"]);
        // Never later than it was.
        plan.hasten(3, now, || 1.0);
        assert_eq!(plan.due(now + SPREAD / 2, 9), ["a"]);
        plan.at_once(&"new", now);
        assert_eq!(plan.due(now, 9), ["new"]);
    }
}
