//! What is wrong at the moment, as people are to read it: "<what>: <cause>".
//!
//! { config, enrol, session } ──set / clear──▶ **conditions** ──▶ { session status, admin, metrics }
//!
//! Invariant: bounded; what does not fit is counted in one last line. Not here: what has happened (logs).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Lines kept.
const MAX: usize = 256;
/// Longest line.
const MAX_LINE: usize = 512;

/// Conditions that hold now. Shared; cheap.
#[derive(Debug)]
pub struct Conditions {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

/// Group and what.
type Key = (&'static str, String);

#[derive(Debug, Default)]
struct Inner {
    lines: BTreeMap<Key, String>,
    overflow: u64,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Conditions {
    /// `what` is wrong because of `cause`. Replaces what was said of it before.
    pub fn set(&self, what: &str, cause: impl Into<String>) {
        self.put(("", what.to_owned()), cause.into());
    }

    /// `what` is well.
    pub fn clear(&self, what: &str) {
        self.take(&("", what.to_owned()));
    }

    /// Of this group, exactly these are wrong.
    pub fn replace(&self, group: &'static str, now: BTreeMap<String, String>) {
        let gone: Vec<Key> = {
            let mut inner = self.inner.lock();
            inner.overflow = 0;
            let of_group = inner.lines.keys().filter(|(of, _)| *of == group);
            of_group.filter(|(_, what)| !now.contains_key(what)).cloned().collect()
        };
        for key in gone {
            self.take(&key);
        }
        for (what, cause) in now {
            self.put((group, what), cause);
        }
    }

    fn put(&self, key: Key, mut cause: String) {
        if cause.len() > MAX_LINE {
            let cut = (0..=MAX_LINE).rev().find(|i| cause.is_char_boundary(*i)).unwrap_or(0);
            cause.truncate(cut);
        }
        let mut inner = self.inner.lock();
        if inner.lines.get(&key) == Some(&cause) {
            return;
        }
        if inner.lines.len() >= MAX && !inner.lines.contains_key(&key) {
            inner.overflow += 1;
        } else {
            tracing::warn!(what = key.1, cause, "condition");
            inner.lines.insert(key, cause);
        }
        drop(inner);
        self.changed.send_modify(|n| *n += 1);
    }

    fn take(&self, key: &Key) {
        if self.inner.lock().lines.remove(key).is_some() {
            tracing::info!(what = key.1, "condition cleared");
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// All lines, sorted.
    pub fn list(&self) -> Vec<String> {
        let inner = self.inner.lock();
        let mut lines: Vec<String> =
            inner.lines.iter().map(|((_, what), cause)| format!("{what}: {cause}")).collect();
        if inner.overflow > 0 {
            lines.push(format!("conditions: {} more did not fit", inner.overflow));
        }
        lines
    }

    /// How many hold.
    pub fn count(&self) -> usize {
        self.inner.lock().lines.len()
    }

    /// Wakes when something changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_replaced_cleared_and_bounded() {
        let conditions = Conditions::default();
        conditions.set("map SERVICES", "full");
        conditions.set("map SERVICES", "full: 32768 entries");
        assert_eq!(conditions.list(), ["map SERVICES: full: 32768 entries"]);
        conditions.clear("map SERVICES");
        assert!(conditions.list().is_empty());
        for i in 0..MAX + 5 {
            conditions.set(&format!("x{i:04}"), "y");
        }
        assert_eq!(conditions.list().len(), MAX + 1);
        assert!(conditions.list()[MAX].contains("5 more"));
    }

    #[test]
    fn a_group_is_replaced_whole() {
        let conditions = Conditions::default();
        conditions.set("disk", "full");
        let group = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), "bad".to_owned())).collect();
        conditions.replace("resources", group(&["a", "b"]));
        conditions.replace("resources", group(&["b", "c"]));
        assert_eq!(conditions.list(), ["disk: full", "b: bad", "c: bad"]);
    }

    #[test]
    fn a_long_cause_is_cut_on_a_character() {
        let conditions = Conditions::default();
        conditions.set("w", "é".repeat(600));
        assert!(conditions.list()[0].len() <= MAX_LINE + 3);
    }
}
