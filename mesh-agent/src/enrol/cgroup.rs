//! Cgroups: where workloads live, and how their end is noticed.
//!
//! A workload has ended when its cgroup was populated and is not any more, or is gone. (Its network
//! namespace cannot tell: the agent's own listeners keep it.)
//!
//! Invariant: a cgroup is taken only below the node's cgroup2 root, by descriptor, never by a path that a
//! workload or the control plane gave. Not here: what follows from the end (enrol).

use std::fs;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::io::Interest;

use crate::sys;

/// `CGROUP2_SUPER_MAGIC`.
const MAGIC: i64 = 0x6367_7270;
/// Cgroups looked at below one, at most.
const MAX_BELOW: usize = 256;
/// How many of a cgroup's processes are looked at.
const MAX_PIDS: usize = 64;

/// The path of an open cgroup directory, or why it cannot hold a workload.
pub fn resolve(directory: BorrowedFd<'_>, root: &Path) -> Result<PathBuf, String> {
    let stat =
        rustix::fs::fstatfs(directory).map_err(|e| format!("the cgroup descriptor cannot be read: {e}"))?;
    if stat.f_type != MAGIC {
        return Err("the second descriptor is not a cgroup2 directory: open the workload's directory below \
                    the cgroup2 mount"
            .into());
    }
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = fs::read_link(link).map_err(|e| format!("the cgroup has no path here: {e}"))?;
    if !path.starts_with(root) || path == root {
        return Err(format!("the cgroup {} is not below {}", path.display(), root.display()));
    }
    // The path must lead to the same directory: a deleted one is shown with a suffix, a foreign mount differs.
    let here = rustix::fs::stat(&path).map_err(|_| format!("the cgroup {} is gone", path.display()))?;
    let given = rustix::fs::fstat(directory).map_err(|e| e.to_string())?;
    if (here.st_dev, here.st_ino) != (given.st_dev, given.st_ino) {
        return Err(format!("the cgroup {} is not the one of the descriptor", path.display()));
    }
    Ok(path)
}

/// Makes a workload's cgroup below `base`.
pub fn make(base: &Path, namespace: &str, name: &str) -> io::Result<PathBuf> {
    let path = base.join(namespace).join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Moves a process in.
pub fn put(path: &Path, pid: i32) -> io::Result<()> {
    fs::write(path.join("cgroup.procs"), pid.to_string())
}

/// Removes a cgroup that the agent made, with what its processes made below it. What is still populated
/// stays.
pub fn remove(path: &Path) {
    for directory in below(path).into_iter().rev() {
        if let Err(error) = fs::remove_dir(&directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(cgroup = %directory.display(), %error, "cgroup not removed");
        }
    }
    // The namespace's directory, when this was its last workload.
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// The cgroup and those below it, parents first.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while next < found.len() && found.len() < MAX_BELOW {
        let children = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let directories = children.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        found.extend(directories.map(|entry| entry.path()));
        next += 1;
    }
    found
}

/// The oldest process in the cgroup and below it, by its number, and the cgroup that it is in itself: where others may
/// be put beside it.
pub fn first(path: &Path) -> Option<(PathBuf, i32)> {
    let of = |directory: PathBuf| {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let pid = text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0).min();
        pid.map(|pid| (directory, pid))
    };
    below(path).into_iter().filter_map(of).min_by_key(|(_, pid)| *pid)
}

/// Processes in the cgroup and below it, the first [`MAX_PIDS`].
pub fn processes(path: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for directory in below(path) {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        // 0: a process of another pid namespace.
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        if pids.len() >= MAX_PIDS {
            break;
        }
    }
    pids.truncate(MAX_PIDS);
    pids
}

/// Does a process live in it or below it? An error: the cgroup is gone.
pub fn populated(path: &Path) -> io::Result<bool> {
    Ok(is_populated(&fs::read_to_string(path.join("cgroup.events"))?))
}

fn is_populated(events: &str) -> bool {
    events.lines().any(|line| line.trim() == "populated 1")
}

/// Returns when the workload has ended. `lived`: a process has been in it; set here when one is seen.
pub async fn ended(path: &Path, lived: &AtomicBool) -> io::Result<()> {
    let file = fs::File::open(path.join("cgroup.events"))?;
    let events = sys::watch(file, Interest::PRIORITY)?;
    loop {
        // Reading arms the notification.
        match read_again(events.get_ref()) {
            Ok(text) if is_populated(&text) => lived.store(true, Relaxed),
            Ok(_) if lived.load(Relaxed) => return Ok(()),
            Ok(_) => {}
            // Removed: the file is open but its cgroup is not there any more.
            Err(_) => return Ok(()),
        }
        // The wait is bounded, because a notification that was lost must not leave a dead workload enrolled.
        let woken =
            tokio::time::timeout(std::time::Duration::from_secs(1), events.ready(Interest::PRIORITY)).await;
        if let Ok(guard) = woken {
            guard?.clear_ready();
        }
        if !path.exists() {
            return Ok(());
        }
    }
}

fn read_again(mut file: &fs::File) -> io::Result<String> {
    file.rewind()?;
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text)?;
    Ok(text)
}

/// Is this the network namespace that the agent itself is in?
pub fn is_own_network(netns: BorrowedFd<'_>) -> io::Result<bool> {
    let own = fs::File::open("/proc/self/ns/net")?;
    let (own, given) = (rustix::fs::fstat(own.as_fd())?, rustix::fs::fstat(netns)?);
    Ok((own.st_dev, own.st_ino) == (given.st_dev, given.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn populated_is_read_from_its_line() {
        assert!(is_populated("populated 1\nfrozen 0\n"));
        assert!(!is_populated("populated 0\nfrozen 1\n"));
        assert!(!is_populated(""));
    }

    #[test]
    fn what_is_not_a_cgroup_is_refused() {
        let tmp = fs::File::open("/tmp").unwrap();
        assert!(resolve(tmp.as_fd(), Path::new("/sys/fs/cgroup")).unwrap_err().contains("not a cgroup2"));
    }

    #[test]
    fn the_agent_knows_its_own_network() {
        let own = fs::File::open("/proc/self/ns/net").unwrap();
        assert!(is_own_network(own.as_fd()).unwrap());
        let other = fs::File::open("/proc/self/ns/mnt").unwrap();
        assert!(!is_own_network(other.as_fd()).unwrap());
    }
}
