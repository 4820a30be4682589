//! The entry of a network namespace that several workloads share: it names no workload, and says at which levels
//! of the cgroup tree theirs are.
//!
//! The kernel tells the cgroup of a caller by level (`bpf_get_current_ancestor_cgroup_id`), so that a process
//! anywhere below an enrolled cgroup is known by one look-up a level.

use super::Enrolled;
use crate::addr::UNSPECIFIED;

/// Levels of the tree at which cgroups can be enrolled at once: one look-up each for a process that is none of ours.
pub const MOST_LEVELS: usize = 4;

impl Enrolled {
    /// The entry of a shared namespace. `levels`: see [`pack_levels`].
    pub const fn shared(levels: u32) -> Self {
        Self {
            addr4: UNSPECIFIED,
            addr6: UNSPECIFIED,
            workload: 0,
            identity: 0,
            scope: levels,
            namespace: 0,
            listener_slot: 0,
            heartbeat_slot: 0,
            budget_pending: 0,
            flags: 0,
            port4_be: 0,
            port6_be: 0,
        }
    }

    /// The levels of a shared namespace, a byte each, the deepest in the lowest one; 0: no more.
    /// `None`: it is a workload's own.
    #[inline(always)]
    pub const fn levels(&self) -> Option<u32> {
        if self.workload == 0 { Some(self.scope) } else { None }
    }
}

/// Levels as [`Enrolled::shared`] takes them: each once, none 0, in any order; the deepest is asked first. `None`: there are more
/// than [`MOST_LEVELS`].
pub fn pack_levels(levels: impl IntoIterator<Item = u8>) -> Option<u32> {
    let (mut sorted, mut len) = ([0u8; MOST_LEVELS], 0);
    for level in levels {
        let held = &sorted[..len];
        if level == 0 || held.contains(&level) {
            continue;
        }
        let at = held.iter().position(|other| *other < level).unwrap_or(len);
        if len == MOST_LEVELS {
            return None;
        }
        sorted.copy_within(at..len, at + 1);
        sorted[at] = level;
        len += 1;
    }
    Some(u32::from_le_bytes(sorted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_asked_from_the_deepest_on_and_each_once() {
        assert_eq!(pack_levels([]), Some(0));
        assert_eq!(pack_levels([2, 5, 2, 0, 3]), Some(0x0002_0305));
        assert_eq!(pack_levels([1, 2, 3, 4]), Some(0x0102_0304));
        assert_eq!(pack_levels([4, 4, 3, 2, 1, 1]), Some(0x0102_0304));
        assert_eq!(pack_levels([1, 2, 3, 4, 5]), None);
    }

    #[test]
    fn a_shared_entry_is_no_workloads() {
        assert_eq!(Enrolled::shared(0x0203).levels(), Some(0x0203));
        assert_eq!(Enrolled { workload: 7, ..Enrolled::shared(9) }.levels(), None);
    }
}
