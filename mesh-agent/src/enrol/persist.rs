//! Enrolments on disk, so that an agent that starts again finds its workloads.
//!
//! What people said of a workload and where it lives: names, labels, memberships, addresses, cgroup path.
//! Never cookies, ids or descriptors: they are looked up again. A record of another boot is ignored: its
//! processes are gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_api::local::Membership;
use serde::{Deserialize, Serialize};

use crate::config::disk::{boot_id, set_aside, write_atomically};

const VERSION: u32 = 1;
const FILE: &str = "enrolments.json";

/// One enrolment as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Mesh namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// What it serves.
    pub memberships: Vec<Membership>,
    /// Cgroup that it lives in.
    pub cgroup: PathBuf,
    /// The agent made the cgroup and removes it.
    pub own_cgroup: bool,
    /// It shares the host's network namespace.
    #[serde(default)]
    pub host_network: bool,
    /// 0, the first, to 15.
    #[serde(default)]
    pub priority: u8,
    /// The control plane took it once: from then on a refusal is a condition, not an end.
    pub accepted: bool,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    boot_id: String,
    enrolments: Vec<Record>,
}

/// The enrolments of this boot.
pub fn load(directory: &Path) -> Vec<Record> {
    let path = directory.join(FILE);
    let Ok(text) = std::fs::read(&path) else { return Vec::new() };
    match serde_json::from_slice::<File>(&text) {
        Ok(file) if file.version != VERSION => {
            set_aside(&path, &format!("version {} is not {VERSION}", file.version));
            Vec::new()
        }
        Ok(file) if file.boot_id == boot_id() => file.enrolments,
        Ok(_) => {
            tracing::info!("the node has started again: earlier enrolments have ended");
            Vec::new()
        }
        Err(error) => {
            set_aside(&path, &error.to_string());
            Vec::new()
        }
    }
}

/// Writes them.
pub fn save(directory: &Path, enrolments: Vec<Record>) -> std::io::Result<()> {
    let file = File { version: VERSION, boot_id: boot_id(), enrolments };
    write_atomically(&directory.join(FILE), |out| Ok(serde_json::to_writer(out, &file)?))
}

#[cfg(test)]
impl Record {
    /// One.
    pub fn for_tests() -> Self {
        Self {
            namespace: "shop".into(),
            name: "cart".into(),
            service_account: "cart".into(),
            labels: [("app".into(), "cart".into())].into(),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            memberships: vec![],
            cgroup: "/sys/fs/cgroup/nodemesh/shop/cart".into(),
            own_cgroup: true,
            host_network: false,
            priority: 0,
            accepted: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_broken_files_are_set_aside() {
        let dir = std::env::temp_dir().join(format!("mesh-agent-persist-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        save(&dir, vec![Record::for_tests()]).unwrap();
        assert_eq!(load(&dir), [Record::for_tests()]);
        std::fs::write(dir.join(FILE), b"{").unwrap();
        assert!(load(&dir).is_empty());
        assert!(!dir.join(FILE).exists());
        let other =
            serde_json::json!({"version": 1, "boot_id": "other", "enrolments": [Record::for_tests()]});
        std::fs::write(dir.join(FILE), other.to_string()).unwrap();
        assert!(load(&dir).is_empty());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
