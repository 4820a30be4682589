//! Workloads whose connections this kernel would not see, refused before they are enrolled: an enrolment that
//! protects nothing is worse than none.
//!
//! - A virtual machine (Kata) or gVisor makes its sockets inside itself; the host sees frames.
//! - A process in a network namespace of its own inside the workload has sockets with another cookie.
//!
//! Judged by the processes that are in the cgroup now. A cgroup that is empty passes: what comes later into a
//! namespace of its own is not seen. Not here: what enrolment is.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::cgroup;

/// Programs that carry a network of their own, and what they are.
const CARRIERS: [(&str, &str); 8] = [
    ("qemu-system-", "a virtual machine (Kata)"),
    ("qemu-kvm", "a virtual machine (Kata)"),
    ("cloud-hypervisor", "a virtual machine (Kata)"),
    ("firecracker", "a virtual machine (Kata)"),
    ("stratovirt", "a virtual machine (Kata)"),
    ("containerd-shim-kata", "a virtual machine (Kata)"),
    ("runsc", "gVisor"),
    ("virtiofsd", "a virtual machine (Kata)"),
];

/// A process as it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    /// File name of its program.
    program: String,
    /// Device and inode of its network namespace.
    netns: (u64, u64),
}

/// Why a workload with this cgroup and namespace must not be enrolled.
pub fn refusal(cgroup: &Path, netns: BorrowedFd<'_>) -> Option<String> {
    let stat = rustix::fs::fstat(netns).ok()?;
    let processes: Vec<_> = cgroup::processes(cgroup).into_iter().filter_map(look_at).collect();
    judge(&processes, (stat.st_dev, stat.st_ino))
}

/// `None`: it has ended.
fn look_at(pid: i32) -> Option<Process> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let netns = rustix::fs::stat(format!("/proc/{pid}/ns/net")).ok()?;
    let program = program.file_name()?.to_string_lossy().into_owned();
    Some(Process { pid, program, netns: (netns.st_dev, netns.st_ino) })
}

fn judge(processes: &[Process], own: (u64, u64)) -> Option<String> {
    let carrier = processes.iter().find_map(|p| {
        let (_, what) = CARRIERS.iter().find(|(name, _)| p.program.starts_with(name))?;
        Some(format!(
            "it is {what}: process {} ({}) makes its connections out of this kernel's sight, where nothing can be \
             balanced, authorised or counted: run it with runc or crun, or leave it outside the mesh",
            p.pid, p.program
        ))
    });
    carrier.or_else(|| {
        let nested = processes.iter().find(|p| p.netns != own)?;
        Some(format!(
            "process {} ({}) of its cgroup lives in another network namespace, whose connections would not be \
             seen: enrol that namespace as a workload of its own, in a cgroup of its own",
            nested.pid, nested.program
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: (u64, u64) = (4, 100);

    fn process(program: &str, netns: (u64, u64)) -> Process {
        Process { pid: 7, program: program.into(), netns }
    }

    #[track_caller]
    fn check(processes: &[Process], want: &str) {
        let said = judge(processes, OWN).unwrap_or_default();
        assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{said:?}");
    }

    #[test]
    fn what_this_kernel_does_not_see_is_refused_by_name() {
        check(&[], "");
        check(&[process("nginx", OWN), process("sh", OWN)], "");
        check(&[process("nginx", OWN), process("qemu-system-x86_64", OWN)], "virtual machine (Kata)");
        check(&[process("runsc-sandbox", (4, 9))], "gVisor");
        check(&[process("nginx", OWN), process("dockerd", (4, 9))], "(dockerd)");
    }
}
