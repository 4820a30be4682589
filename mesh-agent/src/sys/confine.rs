//! A program that the agent starts for a workload: in the workload's cgroup before its first instruction.

#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has the program begin in the cgroup whose open `cgroup.procs` this is, without a way to more rights than its user's.
/// The kernel asks whether who opened the file may move processes, not whom the program runs as.
pub fn confine(command: &mut Command, procs: OwnedFd) {
    // SAFETY: between fork and exec it makes two system calls and neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            rustix::io::write(&procs, b"0")?;
            rustix::thread::set_no_new_privs(true)?;
            Ok(())
        });
    }
}
