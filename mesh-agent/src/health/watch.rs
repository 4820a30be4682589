//! Which checks there are, and what the control plane is told of them.
//!
//! Follows the snapshot and who is enrolled; a check whose service says something else goes on with what was known.
//! What the control plane says of a workload and what its checks say is compared at each look: where they differ for
//! longer than a change takes, it is told again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_api::proto::v1::{CheckHealth, CheckReport, HealthReport};
use mesh_core::health::machine::State;
use mesh_core::health::{Probe, Wanted, Which, wanted};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::probe::Place;
use super::task::{Note, Standing, Task};
use super::{Health, MOST, MOST_COMMANDS, now_ms};
use crate::config::conditions::Lines;
use crate::session::Name;

/// Between two looks, at most.
const LOOK: Duration = Duration::from_secs(1);
/// Looks at which control plane and checks may differ.
const PATIENCE: u32 = 3;
/// Notes that wait.
const NOTES: usize = 256;
/// Group of the conditions.
const GROUP: &str = "health";

/// A workload that is asked.
struct Seen {
    place: Place,
    checks: BTreeMap<Which, Running>,
    /// What was told last.
    told: Option<HealthReport>,
    /// There is something to tell.
    speaks: bool,
    /// Looks at which the control plane said something else.
    differs: u32,
}

struct Running {
    wanted: Wanted,
    run: u64,
    standing: Standing,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All that is asked on this node.
struct Watch {
    health: Health,
    notes: mpsc::Sender<Note>,
    seen: BTreeMap<Name, Seen>,
    runs: u64,
}

impl Health {
    /// Asks for as long as the agent runs.
    pub async fn follow(self) {
        let mut epochs = self.config.epoch();
        let (notes, mut heard) = mpsc::channel(NOTES);
        let mut watch = Watch { health: self, notes, seen: BTreeMap::new(), runs: 0 };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = epochs.changed() => match changed {
                    Ok(()) => watch.look(false).await,
                    Err(_) => return,
                },
                _ = look.tick() => watch.look(true).await,
                Some(note) = heard.recv() => watch.take(note).await,
            }
        }
    }
}

impl Watch {
    /// `timed`: a second has passed since the last such look.
    async fn look(&mut self, timed: bool) {
        let enrolees = self.health.enrolments.enrolees().await;
        let namespaces: BTreeMap<u32, _> = self.health.proxy.workloads().into_iter().collect();
        let snapshot = self.health.config.snapshot();
        let mut gone: BTreeSet<Name> = self.seen.keys().cloned().collect();
        let (mut room, mut commands, mut left_out) = (MOST, MOST_COMMANDS, 0);
        for enrolee in enrolees {
            let name = (enrolee.namespace, enrolee.name);
            let (Some(workload), Some(netns)) =
                (snapshot.workloads.get(&enrolee.workload), namespaces.get(&enrolee.workload))
            else {
                continue;
            };
            let known = self.seen.get(&name).is_some_and(|seen| seen.place.workload == enrolee.workload);
            // Nobody has said yet what it serves.
            if !known && workload.ports.is_empty() {
                continue;
            }
            let (mut all, more) = wanted(&snapshot, workload);
            left_out += more;
            all.retain(|wanted| {
                let runs = matches!(wanted.health.check.probe, Probe::Command(_));
                let fits = room > 0 && (!runs || commands > 0);
                room -= usize::from(fits);
                commands -= usize::from(fits && runs);
                left_out += usize::from(!fits);
                fits
            });
            if !known && all.is_empty() && !enrolee.fresh {
                continue;
            }
            gone.remove(&name);
            let (identity, netns) = (workload.identity, netns.clone());
            let place = Place { workload: enrolee.workload, identity, netns, cgroup: enrolee.cgroup };
            self.settle(&name, place, all, enrolee.fresh && !known, timed);
        }
        self.seen.retain(|name, _| !gone.contains(name));
        self.tell_all().await;
        self.show(left_out);
    }

    /// Begins what is new, ends what is gone.
    fn settle(&mut self, name: &Name, place: Place, all: Vec<Wanted>, fresh: bool, timed: bool) {
        let moved =
            |seen: &Seen| (seen.place.workload, seen.place.identity) != (place.workload, place.identity);
        if self.seen.get(name).is_some_and(moved) {
            self.seen.remove(name);
        }
        let seen = self.seen.entry(name.clone()).or_insert_with(|| Seen {
            place,
            checks: BTreeMap::new(),
            told: None,
            // Who has just come is waited for, unless it is sent to already.
            speaks: fresh && (all.is_empty() || all.iter().any(|wanted| wanted.healthy)),
            differs: 0,
        });
        let before = seen.checks.len();
        seen.checks.retain(|which, _| all.iter().any(|wanted| wanted.which == *which));
        seen.speaks |= seen.checks.len() < before;
        let drained = seen.checks.values().any(|check| check.standing.drained);
        let differs = all.iter().any(|wanted| {
            let well = |check: &Running| check.standing.state == State::Healthy && !drained;
            seen.checks.get(&wanted.which).is_some_and(|check| well(check) != wanted.healthy)
        });
        seen.differs = if differs { seen.differs + u32::from(timed) } else { 0 };
        if seen.differs >= PATIENCE {
            (seen.differs, seen.told, seen.speaks) = (0, None, true);
        }
        for wanted in all {
            let old = seen.checks.get_mut(&wanted.which);
            if let Some(old) = old
                && old.wanted.health == wanted.health
                && old.wanted.target == wanted.target
            {
                old.wanted = wanted;
                continue;
            }
            let known = seen.checks.remove(&wanted.which).map(|old| old.standing.clone());
            let begins = || Standing {
                state: match (fresh, wanted.healthy) {
                    (true, _) => State::Starting,
                    (false, true) => State::Healthy,
                    (false, false) => State::Unhealthy,
                },
                reason: String::new(),
                since_ms: now_ms(),
                drained: false,
            };
            let standing = known.unwrap_or_else(begins);
            self.runs += 1;
            let task = Task {
                health: self.health.clone(),
                place: seen.place.clone(),
                name: name.clone(),
                wanted: wanted.clone(),
                run: self.runs,
                standing: standing.clone(),
                notes: self.notes.clone(),
            };
            let task = tokio::spawn(task.run()).abort_handle();
            let which = wanted.which.clone();
            seen.checks.insert(which, Running { wanted, run: self.runs, standing, task });
        }
    }

    async fn take(&mut self, note: Note) {
        let Some(seen) = self.seen.get_mut(&note.name) else { return };
        let Some(check) = seen.checks.get_mut(&note.which).filter(|check| check.run == note.run) else {
            return;
        };
        check.standing = note.standing;
        seen.speaks = true;
        self.tell_all().await;
    }

    async fn tell_all(&mut self) {
        for (name, seen) in &mut self.seen {
            if !seen.speaks {
                continue;
            }
            let report = report(name, seen);
            if seen.told.as_ref() != Some(&report) {
                seen.told = Some(report.clone());
                self.health.session.health(report).await;
            }
        }
    }

    /// Counts, and says of whom something is wrong.
    fn show(&self, left_out: usize) {
        let stats = &self.health.stats;
        let all =
            || self.seen.iter().flat_map(|(name, seen)| seen.checks.values().map(move |check| (name, check)));
        let ill = || all().filter(|(_, check)| check.standing.state != State::Healthy);
        stats.running.store(all().count() as u64, Relaxed);
        stats.unhealthy.store(ill().count() as u64, Relaxed);
        stats.left_out.store(left_out as u64, Relaxed);
        let line = |(name, check): (&Name, &Running)| {
            let which = &check.wanted.which;
            let port = which.port.map(|(port, _)| format!(":{port}")).unwrap_or_default();
            let what = format!("health of {}/{} by {}{port}", name.0, name.1, which.service);
            (what, check.standing.reason.clone())
        };
        let unhealthy = ill().filter(|(_, check)| check.standing.state == State::Unhealthy);
        let mut lines: Lines = unhealthy.map(line).filter(|(_, reason)| !reason.is_empty()).collect();
        if left_out > 0 {
            let why = format!(
                "{left_out} are not made: a node makes {MOST}, {MOST_COMMANDS} of them commands, of a workload {}; \
                 their workloads count as healthy",
                mesh_core::health::MOST
            );
            lines.insert("health checks".to_owned(), why);
        }
        self.health.config.conditions().replace(GROUP, lines);
    }
}

fn report(name: &Name, seen: &Seen) -> HealthReport {
    let check = |(which, check): (&Which, &Running)| {
        let (port, udp) = which.port.unwrap_or_default();
        let health = match check.standing.state {
            State::Starting => CheckHealth::CheckStarting,
            State::Healthy => CheckHealth::CheckHealthy,
            State::Unhealthy => CheckHealth::CheckUnhealthy,
        };
        CheckReport {
            service: which.name().to_owned(),
            port: port.into(),
            udp,
            health: health.into(),
            reason: check.standing.reason.clone(),
            since_ms: check.standing.since_ms,
        }
    };
    let drained = seen.checks.iter().find(|(_, check)| check.standing.drained);
    HealthReport {
        namespace: name.0.clone(),
        name: name.1.clone(),
        checks: seen.checks.iter().map(check).collect(),
        drained: drained
            .map(|(which, check)| format!("{}: {}", which.name(), check.standing.reason))
            .unwrap_or_default(),
    }
}
