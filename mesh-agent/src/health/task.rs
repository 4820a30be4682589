//! One check of one workload: asks, waits, asks again; tells what has changed.
//!
//! Invariant: one question at a time. Ends when it is aborted.

use std::time::Instant;

use mesh_core::health::machine::{Machine, State};
use mesh_core::health::{Wanted, Which};
use tokio::sync::mpsc;

use super::commands::Commands;
use super::probe::{self, Place};
use super::recover::Recoverer;
use super::{Health, now_ms};
use crate::session::Name;

/// How a workload is, by one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How.
    pub state: State,
    /// Why, where it is not healthy.
    pub reason: String,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// A step of its recovery says that nothing new is to be sent to it.
    pub drained: bool,
}

/// What a task has to say.
#[derive(Debug)]
pub struct Note {
    /// Of which workload.
    pub name: Name,
    /// Which check.
    pub which: Which,
    /// Which run of it: what an earlier one says late counts for nothing.
    pub run: u64,
    /// How it stands.
    pub standing: Standing,
}

/// A check.
pub struct Task {
    pub health: Health,
    pub place: Place,
    pub name: Name,
    pub wanted: Wanted,
    pub run: u64,
    pub standing: Standing,
    pub notes: mpsc::Sender<Note>,
}

impl Task {
    /// Until it is aborted.
    pub async fn run(mut self) {
        let rules = self.wanted.health.check.rules;
        let kind = probe::kind(&self.wanted.health.check.probe);
        let commands = Commands::new(self.health.commands.clone());
        let mut machine = Machine::new(self.standing.state, self.standing.drained, Instant::now());
        tokio::time::sleep(rules.first(fastrand::f64())).await;
        loop {
            let begun = tokio::time::Instant::now();
            let asked = probe::ask(&self.health.kernel, &self.place, &self.wanted, &commands).await;
            self.health.stats.checked(kind, asked.is_ok());
            let recovery = &self.wanted.health.recovery;
            let outcome = machine.took(&rules, recovery, asked.is_ok(), Instant::now());
            let reason = asked.err().unwrap_or_default();
            if outcome.changed {
                self.health.stats.changes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                (self.standing.state, self.standing.since_ms) = (machine.state(), now_ms());
                self.standing.reason.clone_from(&reason);
                let workload = format!("{}/{}", self.name.0, self.name.1);
                let service = &*self.wanted.which.service;
                tracing::info!(workload, service, state = ?machine.state(), reason, "health has changed");
            } else if self.standing.reason.is_empty() && machine.state() == State::Starting {
                self.standing.reason.clone_from(&reason);
            }
            self.standing.drained = machine.drained();
            if outcome.changed || !outcome.todo.is_empty() {
                self.tell().await;
            }
            let recoverer = Recoverer {
                health: &self.health,
                place: &self.place,
                name: &self.name,
                service: &self.wanted.which,
                commands: &commands,
            };
            for todo in outcome.todo {
                if recoverer.act(&todo, &reason).await {
                    machine.restarted(recovery, Instant::now());
                }
            }
            tokio::time::sleep_until(begun + rules.wait(fastrand::f64())).await;
        }
    }

    async fn tell(&self) {
        let (name, which) = (self.name.clone(), self.wanted.which.clone());
        let note = Note { name, which, run: self.run, standing: self.standing.clone() };
        // Nobody hears it: the agent is ending.
        let _ = self.notes.send(note).await;
    }
}
