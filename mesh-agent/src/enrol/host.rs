//! Workloads that share the host's network namespace: units, plain processes, containers with host networking.
//!
//! They are known by their cgroup, the deepest that is enrolled, and by the ports that they declare; the rest of
//! the host is never touched. The host's namespace is the agent's own.
//!
//! Invariants: a port of an address is one workload's; the agent is in no such workload; the namespace has an
//! entry in the kernel only while it has a workload. Not here: what is done with them (datapath).

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mesh_common::record::{EnrolledKey, KIND_CGROUP, MOST_LEVELS, pack_levels};

use super::persist::Record;

/// Inode of the root of the cgroup tree.
const ROOT: u64 = 1;

/// Where a workload is in the cgroup tree, as the kernel's programs see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its cgroup's id.
    pub id: u64,
    /// How deep it is; the root is at 0.
    pub level: u8,
}

impl Seat {
    /// Of a cgroup below the node's root, or why nothing in it can be told from the rest of the host.
    pub fn of(cgroup: &Path) -> Result<Self, String> {
        let look = |path: &Path| fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()));
        let own = look(cgroup)?;
        let mut level = 0;
        for above in cgroup.ancestors() {
            let there = look(above)?;
            if there.dev() != own.dev() {
                break;
            }
            if there.ino() == ROOT {
                refuse_the_agents(cgroup, above)?;
                return Ok(Self { id: own.ino(), level });
            }
            level = level.checked_add(1).ok_or_else(|| format!("{} is too deep", cgroup.display()))?;
        }
        Err(format!(
            "the root of the cgroup tree is not above {}: for workloads of the host's network the agent needs the \
             host's cgroup namespace and all of its cgroup2 mount",
            cgroup.display()
        ))
    }

    /// Its key.
    pub fn key(self) -> EnrolledKey {
        EnrolledKey { kind: KIND_CGROUP, id: self.id }
    }
}

/// The agent's own connections must not become a workload's.
fn refuse_the_agents(cgroup: &Path, root: &Path) -> Result<(), String> {
    let text = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    if root.join(own).starts_with(cgroup) {
        return Err(format!(
            "the agent itself lives in {}: enrol a cgroup of the workload's own",
            cgroup.display()
        ));
    }
    Ok(())
}

/// Why a workload at these addresses cannot serve these ports beside those of `others` that share the host's
/// network; `found`: the host's addresses.
pub fn refusal<'a>(
    addresses: &[IpAddr],
    ports: &[u16],
    found: &[IpAddr],
    others: impl Iterator<Item = &'a Record>,
) -> Option<String> {
    if let Some(foreign) = addresses.iter().find(|ip| !found.contains(ip)) {
        let found: Vec<String> = found.iter().map(IpAddr::to_string).collect();
        return Some(format!("addresses: {foreign} is not one of this host's: {}", found.join(", ")));
    }
    for other in others.filter(|other| other.host_network) {
        let Some(address) = addresses.iter().find(|ip| other.addresses.contains(ip)) else { continue };
        let taken = |port: &&u16| other.memberships.iter().any(|m| m.target_port == **port);
        if let Some(port) = ports.iter().find(taken) {
            return Some(format!(
                "port {port} at {address} is already declared by {}/{}: workloads of one host serve ports of \
                 their own, or have addresses of their own (--address)",
                other.namespace, other.name
            ));
        }
    }
    None
}

/// Who shares the host's network, as far as the kernel must know.
#[derive(Debug, Default)]
pub struct Shared {
    /// Levels of the cgroups that are enrolled, by id.
    levels: BTreeMap<u64, u8>,
    /// What an earlier agent told the kernel, until it is known who is still there.
    adopted: u32,
}

impl Shared {
    /// An earlier agent has left these levels in the kernel.
    pub fn adopt(&mut self, levels: u32) {
        self.adopted = levels;
    }

    /// Everybody that an earlier agent had enrolled has been found, or is gone.
    pub fn settle(&mut self) {
        self.adopted = 0;
    }

    /// One more.
    pub fn add(&mut self, seat: Seat) -> Result<(), String> {
        let all = self.levels.values().copied().chain([seat.level]);
        if pack_levels(all).is_none() {
            return Err(format!(
                "cgroups of {MOST_LEVELS} depths are enrolled on this host already, and {} is another: use one of \
                 those depths",
                seat.level
            ));
        }
        self.levels.insert(seat.id, seat.level);
        Ok(())
    }

    /// One less.
    pub fn remove(&mut self, id: u64) {
        self.levels.remove(&id);
    }

    /// What the kernel is to be told; `None`: nobody shares the namespace.
    pub fn packed(&self) -> Option<u32> {
        let own = self.levels.values().copied();
        let both = pack_levels(own.clone().chain(self.adopted.to_le_bytes())).or_else(|| pack_levels(own));
        both.filter(|levels| *levels != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::local::Membership;

    fn record(name: &str, address: &str, port: u16, host_network: bool) -> Record {
        let member =
            Membership { service: "web".into(), port_name: String::new(), target_port: port, weight: 1 };
        Record {
            namespace: "shop".into(),
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            memberships: vec![member],
            host_network,
            ..Record::for_tests()
        }
    }

    #[track_caller]
    fn check(address: &str, port: u16, want: &str) {
        let found: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| ip.parse().unwrap()).into();
        let others = [record("web", "10.0.0.1", 80, true), record("pod", "10.0.0.3", 80, false)];
        let said = refusal(&[address.parse().unwrap()], &[port], &found, others.iter()).unwrap_or_default();
        assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{said}");
    }

    #[test]
    fn a_port_of_an_address_is_one_workloads() {
        check("10.0.0.1", 80, "port 80 at 10.0.0.1 is already declared by shop/web");
        check("10.0.0.1", 81, "");
        check("10.0.0.2", 80, "");
        check("10.0.0.3", 80, "");
        check("10.0.0.9", 80, "10.0.0.9 is not one of this host's");
    }

    #[test]
    fn the_kernel_is_told_of_the_levels_while_anybody_is_there() {
        let mut shared = Shared::default();
        assert_eq!(shared.packed(), None);
        shared.adopt(4);
        shared.add(Seat { id: 7, level: 3 }).unwrap();
        shared.add(Seat { id: 8, level: 3 }).unwrap();
        assert_eq!(shared.packed(), Some(0x0304));
        shared.settle();
        shared.remove(7);
        assert_eq!(shared.packed(), Some(3));
        for level in [4, 5, 6] {
            shared.add(Seat { id: u64::from(level) * 10, level }).unwrap();
        }
        assert!(shared.add(Seat { id: 9, level: 9 }).unwrap_err().contains("4 depths"));
        for id in [8, 40, 50, 60] {
            shared.remove(id);
        }
        assert_eq!(shared.packed(), None);
    }

    #[test]
    fn the_agents_own_cgroup_is_no_workloads() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find(|line| line.contains(" cgroup2 ")).unwrap();
        let root = Path::new(root.split(' ').nth(1).unwrap());
        assert!(Seat::of(root).unwrap_err().contains("the agent itself"));
        assert!(Seat::of(Path::new("/etc")).unwrap_err().contains("the root of the cgroup tree"));
    }
}
