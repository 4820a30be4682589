//! The keys of those who issue tokens: read from files, fetched from URLs, kept, and told to all agents.
//!
//! ```text
//! Mesh.spec.jwtProviders ─▶ [`keeper`] ─┬─ inline, file: looked at each second
//!                                       └─ url: [`fetch`], when it is [`due`] ─▶ store ─▶ hub ─▶ agents
//! ```
//!
//! One fetch serves all agents, which need no way out. What was good last is kept in the store and stays in force
//! while nothing better comes, over restarts as well; why nothing comes is a condition of the `Mesh`.
//!
//! Invariants: keys of one source never stand for another one's; nothing secret of a set is kept or told; size and time
//! of a fetch are bounded. Not here: what a set is (mesh-api's jwks), tokens (mesh-agent).

pub mod due;
pub mod fetch;
pub mod keeper;

use std::collections::BTreeMap;

use mesh_api::resource::Condition;
use parking_lot::Mutex;

/// What is known of each provider's keys, for people.
#[derive(Default)]
pub struct Shown(Mutex<BTreeMap<String, State>>);

/// Of one provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// When they were seen to be good last, Unix seconds; 0: never.
    pub good: u64,
    /// How many there are.
    pub keys: usize,
    /// Attempts to get them that have failed.
    pub failures: u64,
    /// Why the last one did.
    pub problem: Option<String>,
    /// Keys of the set that are left out, and why.
    pub left_out: Vec<String>,
}

impl Shown {
    /// Changes what is known of a provider.
    pub fn change(&self, provider: &str, change: impl FnOnce(&mut State)) {
        change(self.0.lock().entry(provider.to_owned()).or_default());
    }

    /// Forgets all but these.
    pub fn retain(&self, stays: impl Fn(&str) -> bool) {
        self.0.lock().retain(|provider, _| stays(provider));
    }

    /// All of them.
    pub fn all(&self) -> Vec<(String, State)> {
        self.0.lock().iter().map(|(provider, state)| (provider.clone(), state.clone())).collect()
    }

    /// Of the `Mesh`: nothing where it names nobody.
    pub fn conditions(&self) -> Vec<Condition> {
        let all = self.0.lock();
        if all.is_empty() {
            return Vec::new();
        }
        let problems: Vec<String> =
            all.iter().flat_map(|(provider, state)| state.problems(provider)).collect();
        let good = problems.is_empty();
        let reason = if good { "JwtKeysFound" } else { "JwtKeysNotFound" };
        vec![Condition::new("JwtKeysFound", good, reason, problems.join("; "))]
    }
}

impl State {
    fn problems(&self, provider: &str) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(problem) = &self.problem {
            let then = match self.keys {
                0 => "tokens of it are refused",
                _ => "its last good keys stay in force",
            };
            all.push(format!("jwtProvider {provider}: {problem}; {then}"));
        }
        if let Some(first) = self.left_out.first() {
            let more = self.left_out.len() - 1;
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            all.push(format!("jwtProvider {provider}: a key is left out: {first}{more}"));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_a_condition_of_the_mesh() {
        let shown = Shown::default();
        assert!(shown.conditions().is_empty());
        shown.change("shop", |state| state.keys = 1);
        assert!(shown.conditions()[0].status);
        shown.change("shop", |state| state.problem = Some("it is away".into()));
        shown.change("ops", |state| state.problem = Some("it never was there".into()));
        let condition = shown.conditions().remove(0);
        assert!(!condition.status && condition.message.contains("shop: it is away; its last good keys"));
        assert!(condition.message.contains("ops: it never was there; tokens of it are refused"));
        shown.retain(|provider| provider == "none");
        assert!(shown.conditions().is_empty());
    }
}
