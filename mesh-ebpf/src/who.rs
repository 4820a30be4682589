//! Which workload makes a call: by the caller's network namespace, and where workloads share that, by its cgroup.
//!
//! The namespace comes first: outside the mesh it is the one look-up. Only in hooks that run in the caller's own
//! context: elsewhere `current` is anybody, and who is meant stands in the flow.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie};
use mesh_common::record::{Enrolled, EnrolledKey, KIND_CGROUP, KIND_NETNS, MOST_LEVELS};

use crate::homes;

/// What is enrolled of the caller's namespace: its workload, or an entry that says that several share it.
#[inline(always)]
pub fn of_namespace(ctx: *mut bpf_sock_addr) -> Option<&'static Enrolled> {
    // SAFETY: a valid context.
    enrolled(KIND_NETNS, unsafe { bpf_get_netns_cookie(ctx.cast()) })
}

/// The workload that calls from a namespace whose entry is `entry`. `None`: it is shared, and this is none of
/// those that share it.
#[inline(always)]
pub fn calls(entry: &'static Enrolled) -> Option<&'static Enrolled> {
    match entry.levels() {
        None => Some(entry),
        Some(levels) => of_cgroup(levels),
    }
}

/// A function of its own: rare, and what it needs of the stack others need as well.
#[inline(never)]
fn of_cgroup(levels: u32) -> Option<&'static Enrolled> {
    let mut step = 0;
    while step < MOST_LEVELS {
        let level = levels >> (8 * step) & 0xff;
        if level == 0 {
            return None;
        }
        // SAFETY: 0 where the caller's cgroup is not that deep.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if let Some(me) = enrolled(KIND_CGROUP, id) {
            return Some(me);
        }
        step += 1;
    }
    None
}

#[inline(always)]
fn enrolled(kind: u64, id: u64) -> Option<&'static Enrolled> {
    homes::enrolled(EnrolledKey { kind, id })
}
