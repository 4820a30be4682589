//! The agent is going: something that ends it has happened, and its sockets are not closed yet.
//!
//! A process that is killed gives back its memory first and its descriptors last, milliseconds later. Until
//! then its listeners look served: its workers beat a moment ago. The programs on `signal_generate` and
//! `sched_process_exit` write down the moment; who asks whether the agent is alive looks at it.
//!
//! Not here: heartbeats ([`crate::decide::alive`]), which find out about an agent that hangs.

use crate::decide::HEARTBEAT_DEAD_NS;

/// The one value of `AGENT`: who the agent is, as the kernel knows it, and when it began to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// `CLOCK_MONOTONIC` nanoseconds; 0: it is not going.
    pub since_ns: u64,
    /// Address of its main thread's `task_struct`: compared, never followed.
    pub task: u64,
    /// Its process id in the root pid namespace: not the one that it sees in a container.
    pub tgid: u64,
}
const _: () = assert!(size_of::<Agent>() == 24);

/// Nanoseconds for which the word holds. It need not be longer: no worker beats for so long after the end has
/// begun, so the heartbeat takes over. And it should not: what did not end the agent after all costs a second.
pub const GOING_NS: u64 = 1_000_000_000;
const _: () = assert!(GOING_NS > HEARTBEAT_DEAD_NS);

/// Is an agent that began to go at `since_ns` still going at `now_ns`?
#[inline(always)]
pub const fn going(since_ns: u64, now_ns: u64) -> bool {
    since_ns != 0 && now_ns.saturating_sub(since_ns) < GOING_NS
}

/// Signal numbers of x86, ARM and RISC-V.
mod signal {
    pub const ILL: i32 = 4;
    pub const ABRT: i32 = 6;
    pub const BUS: i32 = 7;
    pub const FPE: i32 = 8;
    pub const KILL: i32 = 9;
    pub const SEGV: i32 = 11;
    pub const SYS: i32 = 31;
}

/// `TRACE_SIGNAL_IGNORED`: the signal has no effect, as SIGKILL from inside on the first process of a pid
/// namespace.
const IGNORED: i32 = 1;

/// Whom a signal is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The agent's main thread stands for the whole process.
    Main,
    /// The thread of the agent that runs now: a fault, or `abort()`.
    Itself,
    /// Neither.
    Other,
}

/// Does this signal end the agent, whatever it does? From outside only SIGKILL is certain: Rust's runtime
/// returns from a SIGSEGV or SIGBUS that no access has caused.
#[inline(always)]
pub const fn ends(signal: i32, result: i32, target: Target) -> bool {
    if result == IGNORED {
        return false;
    }
    match target {
        Target::Main => signal == signal::KILL,
        Target::Itself => {
            use signal::{ABRT, BUS, FPE, ILL, KILL, SEGV, SYS};
            matches!(signal, KILL | ILL | ABRT | BUS | FPE | SEGV | SYS)
        }
        Target::Other => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_the_agent_is_told_from_what_may_not() {
        for (signal, result, target, expected) in [
            (9, 0, Target::Main, true),
            (9, 2, Target::Main, true),
            (9, 1, Target::Main, false),
            (9, 0, Target::Other, false),
            (15, 0, Target::Main, false),
            (11, 0, Target::Main, false),
            (11, 0, Target::Itself, true),
            (6, 0, Target::Itself, true),
            (6, 0, Target::Other, false),
            (23, 1, Target::Itself, false),
        ] {
            assert_eq!(ends(signal, result, target), expected, "{signal} {result} {target:?}");
        }
    }

    #[test]
    fn it_goes_for_a_second() {
        assert!(!going(0, 5));
        assert!(going(7, 7));
        assert!(going(8, 7), "a clock of another CPU");
        assert!(going(7, 6 + GOING_NS));
        assert!(!going(7, 7 + GOING_NS));
    }
}
