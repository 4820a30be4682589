//! Finds the workloads of an agent that ran before, so that its end is not theirs.
//!
//! record → cgroup → a process in it → its network namespace, the one that the kernel has enrolled where
//! there is one. They stay enrolled in the kernel all the while; new listeners take the old slots. What the
//! kernel has and nobody claims is removed at the end.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use mesh_common::record::KIND_NETNS;

use super::persist::{self, Record};
use super::{Enrolments, Place, Wanted, cgroup, datapath, listeners};

impl Enrolments {
    /// Enrols again what is remembered, removes what is left over. Call it once, before anybody enrols.
    pub async fn restore(&self) {
        let records = persist::load(&self.inner.settings.state_dir);
        let enrolled = self.inner.data.enrolled();
        let namespaces = enrolled.iter().filter(|(key, _)| key.kind == KIND_NETNS);
        let known: BTreeSet<u64> = namespaces.map(|(key, _)| key.id).collect();
        for record in records {
            let name = (record.namespace.clone(), record.name.clone());
            match self.restore_one(&record, &known).await {
                Ok(()) => {}
                Err(reason) => {
                    tracing::info!(namespace = name.0, name = name.1, reason, "not enrolled again");
                    self.inner.config.leave(&name.0, &name.1, 0).await;
                    if record.own_cgroup {
                        cgroup::remove(&record.cgroup);
                    }
                }
            }
        }
        let mut table = self.inner.table.lock().await;
        for (key, value) in table.orphans() {
            if table.iter().any(|live| live.numbers.workload == value.workload) {
                self.inner.data.forget(key);
            } else {
                tracing::info!(workload = value.workload, "its workload is gone: removed from the kernel");
                self.inner.data.remove(key, value.workload, value.listener_slot);
            }
        }
        self.inner.data.settle();
        self.remember(&table).await;
    }

    async fn restore_one(&self, record: &Record, known: &BTreeSet<u64>) -> Result<(), String> {
        let (path, known) = (record.cgroup.clone(), known.clone());
        let host = record.host_network;
        let find = move || if host { host_of(&path) } else { namespace_of(&path, &known) };
        let found = tokio::task::spawn_blocking(find);
        let netns = found.await.map_err(|e| e.to_string())?.ok_or("no process lives in its cgroup")?;
        let place =
            Place { netns, cgroup: record.cgroup.clone(), own_cgroup: record.own_cgroup, restored: true };
        // The verdict comes when it comes: traffic does not wait for it.
        let verdict = self.install(Wanted::of(record), place).await?;
        let name = (record.namespace.clone(), record.name.clone());
        if let Some(live) = self.inner.table.lock().await.get_mut(&name) {
            live.record.accepted = record.accepted;
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Ok(verdict) = verdict.await {
                let _ = this.settle(&name, verdict).await;
            }
        });
        Ok(())
    }
}

/// The host's namespace, if any process is left in the cgroup.
fn host_of(path: &std::path::Path) -> Option<OwnedFd> {
    let own = fs::File::open("/proc/self/ns/net").ok()?;
    (!cgroup::processes(path).is_empty()).then(|| own.into())
}

/// The namespace of the processes in a cgroup: the one that the kernel knows, else the first one's.
fn namespace_of(path: &std::path::Path, known: &BTreeSet<u64>) -> Option<OwnedFd> {
    let open = |pid: i32| fs::File::open(format!("/proc/{pid}/ns/net")).ok().map(OwnedFd::from);
    let is_known = |netns: &OwnedFd| {
        listeners::cookie(netns.as_fd()).is_ok_and(|cookie| known.contains(&datapath::key_of(cookie).id))
    };
    let pids = cgroup::processes(path);
    let claimed = pids.iter().filter_map(|pid| open(*pid)).find(is_known);
    claimed.or_else(|| pids.iter().find_map(|pid| open(*pid)))
}
