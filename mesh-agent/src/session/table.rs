//! What this node has registered, and who waits for a verdict on it. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use mesh_api::proto::v1::{HealthReport, RecoveryEvent, WorkloadRemove, WorkloadUpsert};
use tokio::sync::oneshot;

/// Namespace and name of a workload.
pub type Name = (String, String);

/// What the control plane says of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Registered; what is named but harmless.
    Accepted(Vec<String>),
    /// Not registered, and why.
    Refused(String),
}

/// Recoveries that are kept while there is no control plane.
const EVENTS: usize = 64;

/// One entry a workload.
#[derive(Debug, Default)]
pub struct Table {
    last_request: u64,
    entries: BTreeMap<Name, Entry>,
    /// Requests without an answer: at most one a workload, older ones are forgotten.
    pending: HashMap<u64, Name>,
    /// What was done while nobody could be told: the last [`EVENTS`].
    events: VecDeque<RecoveryEvent>,
}

#[derive(Debug)]
struct Entry {
    upsert: WorkloadUpsert,
    waiter: Option<oneshot::Sender<Verdict>>,
    /// How it is, if that was told.
    health: Option<HealthReport>,
    /// Its last verdict was not plain acceptance.
    troubled: bool,
}

impl Table {
    fn request(&mut self, name: &Name) -> u64 {
        self.last_request += 1;
        self.pending.retain(|_, of| of != name);
        self.pending.insert(self.last_request, name.clone());
        self.last_request
    }

    /// Registers; the message to send.
    pub fn upsert(&mut self, mut upsert: WorkloadUpsert, waiter: oneshot::Sender<Verdict>) -> WorkloadUpsert {
        let workload = upsert.workload.get_or_insert_default();
        let name = (workload.namespace.clone(), workload.name.clone());
        upsert.request = self.request(&name);
        // Who says it again is as it was; who has just come is not.
        let health = self.entries.remove(&name).and_then(|old| old.health).filter(|_| !upsert.starting);
        let entry = Entry { upsert: upsert.clone(), waiter: Some(waiter), health, troubled: false };
        self.entries.insert(name, entry);
        upsert
    }

    /// Notes how a workload is; the message to send.
    pub fn report(&mut self, report: HealthReport) -> HealthReport {
        let name = (report.namespace.clone(), report.name.clone());
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.upsert.starting = false;
            entry.health = Some(report.clone());
        }
        report
    }

    /// How all of them are, for a new connection.
    pub fn reports(&self) -> Vec<HealthReport> {
        self.entries.values().filter_map(|entry| entry.health.clone()).collect()
    }

    /// Keeps what was done until somebody can be told; the oldest goes where there is no room.
    pub fn later(&mut self, event: RecoveryEvent) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
            tracing::warn!("the control plane will not hear of all recoveries: it was away for too many");
        }
        self.events.push_back(event);
    }

    /// What was kept.
    pub fn kept(&mut self) -> Vec<RecoveryEvent> {
        self.events.drain(..).collect()
    }

    /// Withdraws; the message to send.
    pub fn remove(&mut self, name: Name) -> WorkloadRemove {
        self.entries.remove(&name);
        self.pending.retain(|_, of| *of != name);
        self.last_request += 1;
        WorkloadRemove { request: self.last_request, namespace: name.0, name: name.1 }
    }

    /// Everything, for a new connection.
    pub fn again(&mut self) -> Vec<WorkloadUpsert> {
        let names = self.entries.keys().cloned().collect();
        self.repeat(names)
    }

    /// What was not plainly accepted: it may be by now.
    pub fn troubled(&mut self) -> Vec<WorkloadUpsert> {
        let troubled = self.entries.iter().filter(|(_, entry)| entry.troubled);
        let names = troubled.map(|(name, _)| name.clone()).collect();
        self.repeat(names)
    }

    fn repeat(&mut self, names: Vec<Name>) -> Vec<WorkloadUpsert> {
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let request = self.request(&name);
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.upsert.request = request;
                all.push(entry.upsert.clone());
            }
        }
        all
    }

    /// Gives the verdict to who waits for it; returned where nobody does.
    pub fn answered(&mut self, request: u64, verdict: Verdict) -> Option<(Name, Verdict)> {
        let name = self.pending.remove(&request)?;
        let entry = self.entries.get_mut(&name)?;
        entry.troubled = !matches!(&verdict, Verdict::Accepted(conditions) if conditions.is_empty());
        match entry.waiter.take() {
            Some(waiter) => waiter.send(verdict).err().map(|verdict| (name, verdict)),
            None => Some((name, verdict)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::proto::v1::Workload;

    fn upsert(name: &str) -> WorkloadUpsert {
        let workload = Workload { namespace: "shop".into(), name: name.into(), ..Workload::default() };
        WorkloadUpsert { workload: Some(workload), ..WorkloadUpsert::default() }
    }

    #[test]
    fn the_first_verdict_goes_to_who_waits_and_later_ones_to_enrol() {
        let mut table = Table::default();
        let (waiter, mut verdict) = oneshot::channel();
        let sent = table.upsert(upsert("cart"), waiter);
        assert_eq!(
            table.answered(sent.request + 9, Verdict::Refused("?".into())),
            None,
            "an unknown request"
        );
        assert_eq!(table.answered(sent.request, Verdict::Accepted(vec![])), None);
        assert_eq!(verdict.try_recv().unwrap(), Verdict::Accepted(vec![]));
        let again = table.again();
        assert_eq!(again.len(), 1);
        let refused = Verdict::Refused("no grant".into());
        let name = ("shop".to_owned(), "cart".to_owned());
        assert_eq!(table.answered(again[0].request, refused.clone()), Some((name, refused)));
    }

    #[test]
    fn the_answer_to_an_older_request_is_ignored() {
        let mut table = Table::default();
        let (waiter, mut verdict) = oneshot::channel();
        let first = table.upsert(upsert("cart"), waiter);
        let second = table.again();
        assert_eq!(table.answered(first.request, Verdict::Refused("old".into())), None);
        table.answered(second[0].request, Verdict::Accepted(vec![]));
        assert_eq!(verdict.try_recv().unwrap(), Verdict::Accepted(vec![]));
    }

    #[test]
    fn what_was_not_plainly_accepted_is_said_again() {
        let mut table = Table::default();
        let (waiter, _verdict) = oneshot::channel();
        let sent = table.upsert(upsert("cart"), waiter);
        assert!(table.troubled().is_empty());
        table.answered(sent.request, Verdict::Accepted(vec!["its service does not exist".into()]));
        let again = table.troubled();
        assert_eq!(again.len(), 1);
        table.answered(again[0].request, Verdict::Accepted(vec![]));
        assert!(table.troubled().is_empty());
    }

    #[test]
    fn a_removed_workload_is_not_told_again() {
        let mut table = Table::default();
        let (waiter, _verdict) = oneshot::channel();
        let sent = table.upsert(upsert("cart"), waiter);
        table.remove(("shop".into(), "cart".into()));
        assert!(table.again().is_empty());
        assert_eq!(table.answered(sent.request, Verdict::Refused("late".into())), None);
    }
}
