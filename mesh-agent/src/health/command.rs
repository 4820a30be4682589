//! Runs one of the node's own commands beside a workload: as its user, in its cgroup and network namespace.
//!
//! The user is that of the workload's first process. No input, no environment but `PATH`, no way to more rights than
//! that user has. Invariants: what runs longer than it may is killed with all that it began; output is read and dropped
//! but for a first piece. Not here: which command (commands).

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::time::Duration;

use mesh_api::duration;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command as Program};

use super::commands::Command;
use super::probe::Place;
use crate::enrol::cgroup;
use crate::sys;

/// Bytes of output that are shown.
const SHOWN: u64 = 256;
/// How long output is waited for after the end.
const LINGER: Duration = Duration::from_millis(100);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it to its end; a status of 0 is well.
pub async fn run(place: &Place, command: &Command, limit: Duration) -> Result<(), String> {
    let name = command.run.first().map_or("", String::as_str);
    let mut child = start(place, command).map_err(|error| format!("{name} cannot be run: {error}"))?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let output = (child.stdout.take(), child.stderr.take());
    let heard = tokio::spawn(async move { tokio::join!(hear(output.0), hear(output.1)) });
    let ended = tokio::time::timeout(limit, child.wait()).await;
    let Ok(status) = ended else {
        drop(group);
        heard.abort();
        return Err(format!("{name} did not end within {}", duration::format(limit)));
    };
    group.has_ended();
    let status = status.map_err(|error| format!("{name}: {error}"))?;
    let mut heard = heard;
    let said = tokio::time::timeout(LINGER, &mut heard).await;
    heard.abort();
    if status.success() {
        return Ok(());
    }
    let said = match said {
        Ok(Ok((out, err))) => [err, out].into_iter().find(|text| !text.is_empty()),
        _ => None,
    };
    Err(format!("{name}: {status}{}", said.map(|text| format!(": {text}")).unwrap_or_default()))
}

fn start(place: &Place, command: &Command) -> io::Result<Child> {
    let (program, arguments) =
        command.run.split_first().ok_or_else(|| io::Error::other("it has no program"))?;
    let gone = || io::Error::other("no process of the workload is there");
    let (cgroup, first) = cgroup::first(&place.cgroup).ok_or_else(gone)?;
    let (uid, gid) = user(first)?;
    let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
    let mut child = Program::new(program);
    child
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // Groups of the agent's own go with this.
    child.uid(uid).gid(gid);
    sys::confine(child.as_std_mut(), procs.into());
    sys::in_netns(place.netns.as_fd(), || child.spawn())
}

/// The user and group of a process.
fn user(first: i32) -> io::Result<(u32, u32)> {
    let status = fs::read_to_string(format!("/proc/{first}/status"))?;
    let effective = |name: &str| -> Option<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let both = effective("Uid:").zip(effective("Gid:"));
    both.ok_or_else(|| io::Error::other(format!("/proc/{first}/status names no user")))
}

/// The first piece of what it says, on one line; the rest is read, so that nobody waits to write it.
async fn hear(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut first = Vec::new();
    let _ = (&mut from).take(SHOWN).read_to_end(&mut first).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&first).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All that a command has begun; killed when this is dropped.
struct Group(Option<Pid>);

impl Group {
    /// It has ended by itself, and its number may be another's soon.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
