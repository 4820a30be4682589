//! What is wrong with a resource, by name, for as long as it is wrong.
//!
//! Invariant: a problem stays with its own resource and stops nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Kind, Name};

/// Something that a person should mend: shown by `meshctl status`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// `<kind> <namespace>/<name>`.
    pub subject: String,
    /// The cause and the remedy.
    pub problem: String,
}

/// All problems of now.
#[derive(Debug, Default)]
pub(super) struct Problems {
    held: BTreeMap<(Kind, Name, u32), Vec<String>>,
    shown: Option<Arc<[Condition]>>,
}

impl Problems {
    /// Replaces what is known to be wrong with one resource, or with the endpoints of one port of a service
    /// (`port` of `Port::place`; 0: all else).
    pub fn set(&mut self, kind: Kind, name: &Name, port: u32, problems: Vec<String>) {
        if problems.is_empty() && self.held.is_empty() {
            return;
        }
        let key = (kind, Name::clone(name), port);
        let changed = if problems.is_empty() {
            self.held.remove(&key).is_some()
        } else {
            self.held.get(&key) != Some(&problems) && {
                self.held.insert(key, problems);
                true
            }
        };
        if changed {
            self.shown = None;
        }
    }

    /// All of them, by kind and name. Built again only when something changed.
    pub fn all(&mut self) -> Arc<[Condition]> {
        let held = &self.held;
        let shown = self.shown.get_or_insert_with(|| {
            held.iter()
                .flat_map(|((kind, name, _), problems)| {
                    problems.iter().map(move |problem| Condition {
                        subject: format!("{kind} {name}"),
                        problem: problem.clone(),
                    })
                })
                .collect()
        });
        Arc::clone(shown)
    }
}
