//! The moment at which the agent's end begins, so that no connection is given to it after that.
//!
//! - [`mesh_signal`] on `signal_generate`: inside `kill()`. Covers SIGKILL from anybody, the OOM killer and
//!   cgroups among them, faults and `abort()`.
//! - [`mesh_exit`] on `sched_process_exit`: every other end (an unhandled signal, `exit()`), and a SIGKILL at
//!   another thread. Before the memory goes since Linux 6.16, after it before that.
//! - [`mesh_register`] is attached nowhere: the agent runs it once, so that the kernel writes down who the
//!   agent is. In a container a process does not know its own number.
//!
//! The links of both are the agent's own and go with it; `AGENT` is pinned, and names the newest agent alone.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use mesh_common::going::{self, Agent, Target};

use crate::maps::AGENT;

#[raw_tracepoint]
pub fn mesh_register(_: RawTracePointContext) {
    let Some(agent) = AGENT.get_ptr_mut(0) else { return };
    // SAFETY: a live array value; one agent registers at a time, and readers take each word by itself.
    unsafe {
        (&raw mut (*agent).task).write_volatile(bpf_get_current_task());
        (&raw mut (*agent).tgid).write_volatile(bpf_get_current_pid_tgid() >> 32);
        (&raw mut (*agent).since_ns).write_volatile(0);
    }
}

#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn mesh_signal(ctx: RawTracePointContext) {
    // int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result
    let (signal, task, result): (i32, u64, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(4));
    let Some(agent) = AGENT.get_ptr_mut(0) else { return };
    // SAFETY: as in `mesh_register`.
    let known = unsafe { agent.read_volatile() };
    // SAFETY: no arguments.
    let itself = unsafe { bpf_get_current_task() } == task && bpf_get_current_pid_tgid() >> 32 == known.tgid;
    let target = if itself {
        Target::Itself
    } else if task == known.task {
        Target::Main
    } else {
        Target::Other
    };
    if going::ends(signal, result, target) {
        mark(agent);
    }
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn mesh_exit(_: RawTracePointContext) {
    let Some(agent) = AGENT.get_ptr_mut(0) else { return };
    // SAFETY: no arguments; the word is one of a live array value. Main threads leave last, or with all.
    if unsafe { bpf_get_current_task() == (&raw const (*agent).task).read_volatile() } {
        mark(agent);
    }
}

#[inline(always)]
fn mark(agent: *mut Agent) {
    // SAFETY: an aligned word of a live array value.
    unsafe { (&raw mut (*agent).since_ns).write_volatile(bpf_ktime_get_ns()) };
}

/// Is the agent going at `now_ns`?
#[inline(always)]
pub fn going(now_ns: u64) -> bool {
    // SAFETY: as in `mark`.
    AGENT
        .get_ptr(0)
        .is_some_and(|agent| unsafe { going::going((&raw const (*agent).since_ns).read_volatile(), now_ns) })
}
