//! A namespace, a cgroup and a bpffs of a test's own, with one enrolled workload; gone at the end, also after
//! a panic. A process has one cgroup: the tests of this binary run one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mesh_agent::kernel::{FlowTelemetry, Kernel, LoadOptions, cleanup};
use mesh_common::addr::{UNSPECIFIED, from_ip};
use mesh_common::record::{Enrolled, EnrolledKey, KIND_NETNS};
use parking_lot::{Mutex, MutexGuard};

/// The workload's address.
pub const OWN: &str = "10.9.9.9";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// See the file's head.
pub struct Place {
    name: String,
    cgroup: PathBuf,
    bpffs: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    /// Waits until no other test has one.
    pub fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock();
        let name = format!("nm-kernel-{}", std::process::id());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root =
            mounts.lines().find(|l| l.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2 is mounted");
        let cgroup = Path::new(root.split(' ').nth(1).unwrap()).join(&name);
        let bpffs = std::env::temp_dir().join(&name).join("nodemesh");
        let place = Self { bpffs, cgroup, name, _alone: alone };
        fs::create_dir(&place.cgroup).expect("this test needs root");
        fs::write(place.cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        place.ip(&["netns", "add", &place.name]);
        place.ip(&["-n", &place.name, "link", "set", "lo", "up"]);
        place.ip(&["-n", &place.name, "addr", "add", &format!("{OWN}/32"), "dev", "lo"]);
        place
    }

    /// Loads the programs onto this place's cgroup.
    pub fn kernel(&self) -> Kernel {
        self.sized(vec![])
    }

    /// The same with maps of other sizes.
    pub fn sized(&self, sizes: Vec<(&'static str, u32)>) -> Kernel {
        let options = LoadOptions {
            bpffs: self.bpffs.clone(),
            cgroup: self.cgroup.clone(),
            sizes,
            telemetry: FlowTelemetry::default(),
            udp_idle: Duration::from_mins(1),
        };
        Kernel::load(&options).unwrap()
    }

    /// The namespace.
    pub fn netns(&self) -> fs::File {
        fs::File::open(format!("/run/netns/{}", self.name)).unwrap()
    }

    fn ip(&self, args: &[&str]) {
        let done = Command::new("ip").args(args).status().expect("iproute2 is installed");
        assert!(done.success(), "ip {args:?} in {}", self.name);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = cleanup(&self.bpffs);
        let _ = fs::remove_dir_all(self.bpffs.parent().unwrap());
        let _ = fs::write(self.cgroup.parent().unwrap().join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&self.cgroup);
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Makes the namespace with this cookie a workload.
pub fn enrol(kernel: &Kernel, cookie: u64) {
    let value = Enrolled {
        addr4: from_ip(OWN.parse().unwrap()),
        addr6: UNSPECIFIED,
        workload: 1,
        identity: 1,
        scope: 0,
        namespace: 1,
        listener_slot: 0,
        heartbeat_slot: 0,
        budget_pending: 16,
        flags: 0,
        port4_be: 0,
        port6_be: 0,
    };
    kernel.enrol(EnrolledKey { kind: KIND_NETNS, id: cookie }, &value).unwrap();
}
