//! What the outcomes of a workload's checks come to.
//!
//! ```text
//! starting ──passed──▶ healthy ◀──passes in a row── unhealthy ──failures in a row──▶ steps of recovery
//!     └──grace over, failures in a row──▶ unhealthy ◀──failures in a row── healthy
//! ```
//!
//! Invariants: one outcome changes the state at most once; a step is taken once for as long as it is unhealthy, a
//! restart at most as often as it says until it was healthy again; failures within the grace of a start count as
//! nothing. Not here: clocks, asking.

use std::time::Instant;

use super::{Action, Recovery, Rules};

/// How a workload is, by one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No check has passed since it began.
    Starting,
    /// Well.
    Healthy,
    /// Not.
    Unhealthy,
}

/// One check's memory.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    /// When it began, or was started again.
    begun: Instant,
    /// Within the grace of a start: until a check passes.
    grace: bool,
    passes: u32,
    failures: u32,
    /// Steps that were taken since it is unhealthy, by place.
    taken: Vec<bool>,
    restarts: u32,
    drained: bool,
    told: bool,
}

/// What is to be done after an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Do {
    /// A step of the recovery.
    Step(Action),
    /// It would be restarted once more, and has been often enough.
    GiveUp(String),
    /// It is healthy again and was drained.
    Readmit,
    /// It is healthy again, and these were told that it was not.
    Tell(String),
}

/// What an outcome came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The state is another one.
    pub changed: bool,
    /// What is to be done, in order.
    pub todo: Vec<Do>,
}

impl Machine {
    /// Begins with what was known.
    pub fn new(state: State, drained: bool, now: Instant) -> Self {
        Self {
            state,
            begun: now,
            grace: state == State::Starting,
            passes: 0,
            failures: 0,
            taken: Vec::new(),
            restarts: 0,
            drained,
            told: false,
        }
    }

    /// How the workload is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Is nothing new to be sent to the workload?
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A check has passed, or not.
    pub fn took(&mut self, rules: &Rules, recovery: &Recovery, passed: bool, now: Instant) -> Outcome {
        if passed { self.passed(rules, recovery) } else { self.failed(rules, recovery, now) }
    }

    fn passed(&mut self, rules: &Rules, recovery: &Recovery) -> Outcome {
        (self.failures, self.grace) = (0, false);
        self.passes = self.passes.saturating_add(1);
        let enough = match self.state {
            State::Starting => 1,
            State::Healthy => return Outcome::default(),
            State::Unhealthy if recovery.readmit > 0 => recovery.readmit,
            State::Unhealthy => rules.healthy,
        };
        if self.passes < enough {
            return Outcome::default();
        }
        self.state = State::Healthy;
        let mut todo = Vec::new();
        if std::mem::take(&mut self.drained) {
            todo.push(Do::Readmit);
        }
        if std::mem::take(&mut self.told) {
            let urls = recovery.steps.iter().filter_map(|step| match &step.action {
                Action::Webhook(url) => Some(Do::Tell(url.clone())),
                _ => None,
            });
            todo.extend(urls);
        }
        self.taken.clear();
        self.restarts = 0;
        Outcome { changed: true, todo }
    }

    fn failed(&mut self, rules: &Rules, recovery: &Recovery, now: Instant) -> Outcome {
        self.passes = 0;
        if self.grace && now.saturating_duration_since(self.begun) < rules.grace {
            return Outcome::default();
        }
        self.grace = false;
        self.failures = self.failures.saturating_add(1);
        let mut outcome = Outcome::default();
        if self.state != State::Unhealthy {
            if self.failures < rules.unhealthy {
                return outcome;
            }
            self.state = State::Unhealthy;
            outcome.changed = true;
        }
        self.taken.resize(recovery.steps.len(), false);
        for (i, step) in recovery.steps.iter().enumerate() {
            if self.taken[i] || self.failures < step.after {
                continue;
            }
            self.taken[i] = true;
            outcome.todo.push(match &step.action {
                Action::Restart { command, at_most } if self.restarts >= *at_most => {
                    Do::GiveUp(command.clone())
                }
                action => Do::Step(action.clone()),
            });
            match &step.action {
                Action::Drain | Action::Eject => self.drained = true,
                Action::Webhook(_) => self.told = true,
                Action::Restart { .. } => {}
            }
        }
        outcome
    }

    /// It has been started again: failures within its grace do not count, and what is to be restarted after so many
    /// failures is so again after as many more.
    pub fn restarted(&mut self, recovery: &Recovery, now: Instant) {
        self.restarts = self.restarts.saturating_add(1);
        (self.begun, self.grace, self.failures, self.passes) = (now, true, 0, 0);
        for (taken, step) in self.taken.iter_mut().zip(&recovery.steps) {
            *taken &= !matches!(step.action, Action::Restart { .. });
        }
    }
}
