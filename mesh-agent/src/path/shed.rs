//! Is the agent short of descriptors or memory? Then it takes no new connections, and says why, before those that it has
//! suffer.
//!
//! Looked at once a second by a thread of its own: counting descriptors takes milliseconds where there are many.
//! Not here: the marks (mesh-core's overload), what one workload may use (budget).

use std::fs;
use std::path::PathBuf;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use mesh_core::resilience::overload::{Used, sheds};
use rustix::process::{Resource, getrlimit};

use super::worker::Common;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// What all workers ask.
#[derive(Debug, Default)]
pub struct Shed(AtomicBool);

impl Shed {
    /// Is new work refused?
    pub fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Looks now.
    fn look(&self, cgroup: Option<&PathBuf>) {
        let of = [descriptors(), cgroup.map_or_else(Used::default, memory)];
        let before = self.is_on();
        let now = sheds(before, &of);
        self.0.store(now, Relaxed);
        if now != before {
            let [Used { used: descriptors, .. }, Used { used: bytes, .. }] = of;
            tracing::warn!(
                refuses = now,
                descriptors,
                bytes,
                "new connections, for want of descriptors or memory"
            );
        }
    }
}

/// Looks until the workers have ended.
pub fn watch(common: Weak<Common>) {
    let cgroup = own_cgroup();
    while let Some(held) = common.upgrade() {
        held.shed.look(cgroup.as_ref());
        drop(held);
        std::thread::sleep(EVERY);
    }
}

fn descriptors() -> Used {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Used { used: open as u64, room: getrlimit(Resource::Nofile).current.unwrap_or(0) }
}

fn own_cgroup() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from("/sys/fs/cgroup").join(path))
}

/// What cannot be given back, of what the cgroup may have.
fn memory(cgroup: &PathBuf) -> Used {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).unwrap_or_default();
    let room = read("memory.max").trim().parse().unwrap_or(0);
    if room == 0 {
        return Used::default();
    }
    let stat = read("memory.stat");
    let of = |name: &str| -> u64 {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Used { used: of("anon") + of("sock") + of("kernel"), room }
}
