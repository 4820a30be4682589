//! Where enrolled workloads are, for who has to do with them besides traffic.

use std::path::PathBuf;

use super::Enrolments;

/// An enrolled workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolee {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node-local number.
    pub workload: u32,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// It was enrolled by this agent, not by one before.
    pub fresh: bool,
}

impl Enrolments {
    /// All of them.
    pub async fn enrolees(&self) -> Vec<Enrolee> {
        let table = self.inner.table.lock().await;
        let enrolee = |live: &super::Live| Enrolee {
            namespace: live.record.namespace.clone(),
            name: live.record.name.clone(),
            workload: live.numbers.workload,
            cgroup: live.record.cgroup.clone(),
            fresh: live.fresh,
        };
        table.iter().map(enrolee).collect()
    }

    /// Does any service of this namespace ask its workloads whether they are well?
    pub(super) fn is_checked(&self, namespace: &str) -> bool {
        let snapshot = self.inner.config.snapshot();
        snapshot.services.values().any(|service| service.health.is_some() && *service.namespace == *namespace)
    }
}
