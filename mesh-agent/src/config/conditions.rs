//! What is wrong at the moment, as people are to read it: "<what>: <cause>".
//!
//! { config, enrol, session } ──set / clear / replace──▶ **conditions** ──▶ { session status, admin, metrics }
//!
//! Invariant: bounded; what does not fit is counted in one last line. Not here: what has happened (logs).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Lines kept of each group.
const MAX: usize = 256;
/// Longest cause.
const MAX_CAUSE: usize = 512;
/// Changes of a group that are logged one by one.
const MAX_LOGGED: usize = 16;

/// What → cause.
pub type Lines = BTreeMap<String, String>;

/// Conditions that hold now. Shared; cheap.
#[derive(Debug)]
pub struct Conditions {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    groups: BTreeMap<&'static str, Group>,
}

#[derive(Debug, Default)]
struct Group {
    lines: Lines,
    /// That did not fit.
    more: usize,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::channel(0).0 }
    }
}

/// The group of what is set and cleared one by one.
const SINGLE: &str = "";

impl Conditions {
    /// `what` is wrong because of `cause`. Replaces what was said of it before.
    pub fn set(&self, what: &str, cause: impl Into<String>) {
        let cause = cut(cause.into());
        {
            let mut inner = self.inner.lock();
            let group = inner.groups.entry(SINGLE).or_default();
            if group.lines.get(what) == Some(&cause) {
                return;
            }
            if group.lines.len() >= MAX && !group.lines.contains_key(what) {
                group.more += 1;
            } else {
                tracing::warn!(what, cause, "condition");
                group.lines.insert(what.to_owned(), cause);
            }
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// `what` is well.
    pub fn clear(&self, what: &str) {
        let cleared =
            self.inner.lock().groups.get_mut(SINGLE).is_some_and(|g| g.lines.remove(what).is_some());
        if cleared {
            tracing::info!(what, "condition cleared");
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Of this group, exactly these are wrong.
    pub fn replace(&self, group: &'static str, mut now: Lines) {
        let total = now.len();
        if let Some((first_beyond, _)) = now.iter().nth(MAX) {
            let first_beyond = first_beyond.clone();
            drop(now.split_off(&first_beyond));
        }
        let now: Lines = now.into_iter().map(|(what, cause)| (what, cut(cause))).collect();
        let more = total - now.len();
        {
            let mut inner = self.inner.lock();
            let group = inner.groups.entry(group).or_default();
            if group.lines == now && group.more == more {
                return;
            }
            let new = now.iter().filter(|(what, cause)| group.lines.get(*what) != Some(*cause));
            for (what, cause) in new.take(MAX_LOGGED) {
                tracing::warn!(what, cause, "condition");
            }
            for what in group.lines.keys().filter(|what| !now.contains_key(*what)).take(MAX_LOGGED) {
                tracing::info!(what, "condition cleared");
            }
            *group = Group { lines: now, more };
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// All lines, by group and name.
    pub fn list(&self) -> Vec<String> {
        let inner = self.inner.lock();
        let lines = inner.groups.values().flat_map(|group| &group.lines);
        let mut lines: Vec<String> = lines.map(|(what, cause)| format!("{what}: {cause}")).collect();
        let more: usize = inner.groups.values().map(|group| group.more).sum();
        if more > 0 {
            lines.push(format!("conditions: {more} more did not fit"));
        }
        lines
    }

    /// How many hold.
    pub fn count(&self) -> usize {
        self.inner.lock().groups.values().map(|group| group.lines.len() + group.more).sum()
    }

    /// Wakes when something changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn cut(mut cause: String) -> String {
    if cause.len() > MAX_CAUSE {
        let end = (0..=MAX_CAUSE).rev().find(|i| cause.is_char_boundary(*i)).unwrap_or(0);
        cause.truncate(end);
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_replaced_and_cleared() {
        let conditions = Conditions::default();
        conditions.set("map SERVICES", "full");
        conditions.set("map SERVICES", "full: 32768 entries");
        assert_eq!(conditions.list(), ["map SERVICES: full: 32768 entries"]);
        conditions.clear("map SERVICES");
        assert!(conditions.list().is_empty());
    }

    fn group(names: impl IntoIterator<Item = impl ToString>) -> Lines {
        names.into_iter().map(|name| (name.to_string(), "bad".to_owned())).collect()
    }

    #[test]
    fn a_group_is_replaced_whole_and_wakes_only_when_it_changed() {
        let conditions = Conditions::default();
        conditions.set("disk", "full");
        conditions.replace("resources", group(["a", "b"]));
        let mut watch = conditions.watch();
        conditions.replace("resources", group(["a", "b"]));
        assert!(!watch.has_changed().unwrap());
        conditions.replace("resources", group(["b", "c"]));
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        assert_eq!(conditions.list(), ["disk: full", "b: bad", "c: bad"]);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let conditions = Conditions::default();
        conditions.replace("resources", group(0..MAX + 5));
        assert_eq!((conditions.list().len(), conditions.count()), (MAX + 1, MAX + 5));
        assert!(conditions.list()[MAX].contains("5 more"));
        conditions.replace("resources", group(0..2));
        assert_eq!(conditions.list().len(), 2);
    }

    #[test]
    fn a_long_cause_is_cut_on_a_character() {
        let conditions = Conditions::default();
        conditions.set("w", "é".repeat(600));
        assert!(conditions.list()[0].len() <= MAX_CAUSE + 3);
    }
}
