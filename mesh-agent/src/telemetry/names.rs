//! Names for the kernel's numbers: those of the snapshot, and for a while those that have left it.
//!
//! Counters outlive what they count: a series keeps its name as long as anybody scrapes it. Bounded: the
//! name that left first is forgotten first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use mesh_core::compile::Dirty;
use mesh_core::ids::IdKind;
use mesh_core::snapshot::{Service, Snapshot};
use parking_lot::Mutex;

/// Names remembered.
const MAX: usize = 16_384;

type Number = (IdKind, u32);

#[derive(Debug, Default)]
struct Gone {
    names: HashMap<Number, Arc<str>>,
    /// In the order in which they left.
    order: VecDeque<Number>,
}

/// Names that are not in the snapshot. Shared.
#[derive(Debug, Default)]
pub struct Names {
    gone: Mutex<Gone>,
}

impl Names {
    /// Remembers a name that the snapshot does not hold.
    pub fn learn(&self, kind: IdKind, id: u32, name: &str) {
        let Gone { names, order } = &mut *self.gone.lock();
        if names.insert((kind, id), name.into()).is_none() {
            order.push_back((kind, id));
        }
        while order.len() > MAX {
            if let Some(first) = order.pop_front() {
                names.remove(&first);
            }
        }
    }

    /// Remembers what leaves between two snapshots.
    pub fn learn_gone(&self, before: &Snapshot, after: &Snapshot, dirty: &Dirty) {
        for id in &dirty.services {
            if let (Some(service), None) = (before.services.get(id), after.services.get(id)) {
                self.learn(IdKind::Service, *id, &service_name(service));
            }
        }
        for id in &dirty.workloads {
            if let (Some(workload), None) = (before.workloads.get(id), after.workloads.get(id)) {
                self.learn(IdKind::Workload, *id, &workload.full_name);
            }
        }
    }

    fn recall(&self, kind: IdKind, id: u32) -> String {
        self.gone.lock().names.get(&(kind, id)).map_or_else(|| "unknown".into(), ToString::to_string)
    }

    /// Name of a service port; 0: `outside`.
    pub fn service(&self, snapshot: &Snapshot, id: u32) -> String {
        match snapshot.services.get(&id) {
            _ if id == 0 => "outside".into(),
            Some(service) => service_name(service),
            None => self.recall(IdKind::Service, id),
        }
    }

    /// Name of a workload; 0: `outside`.
    pub fn workload(&self, snapshot: &Snapshot, id: u32) -> String {
        match snapshot.workloads.get(&id) {
            _ if id == 0 => "outside".into(),
            Some(workload) => workload.full_name.to_string(),
            None => self.recall(IdKind::Workload, id),
        }
    }
}

/// `<namespace>/<name>:<port>`.
pub fn service_name(service: &Service) -> String {
    format!("{}/{}:{}", service.namespace, service.name, service.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_remembered_within_a_bound() {
        let names = Names::default();
        let snapshot = Snapshot::default();
        for id in 1..=MAX as u32 + 1 {
            names.learn(IdKind::Service, id, &format!("a/s:{id}"));
        }
        assert_eq!(names.service(&snapshot, 1), "unknown");
        assert_eq!(names.service(&snapshot, 2), "a/s:2");
        assert_eq!(names.workload(&snapshot, 2), "unknown");
        assert_eq!(names.service(&snapshot, 0), "outside");
    }
}
