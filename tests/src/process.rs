//! A program in a namespace and a cgroup, its output in a log file.

use std::{
    ffi::OsStr,
    fs::{self, File},
    ops::Range,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{cgroup::Cgroup, clock::monotonic_ns, netns::NetNs};

/// Where a program of the workspace is: beside the one that runs (`target/<profile>`).
pub fn own_program(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("own path");
    let folder = me.parent().expect("own directory");
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built: run cargo xtask build", path.display());
    path
}

/// `program`, to be started by a thread that is in the right namespace, in `cgroup` before its first
/// instruction: a shell joins and becomes the program.
pub fn command(cgroup: &Cgroup, program: impl AsRef<OsStr>) -> Command {
    command_also_in(cgroup, None, program)
}

/// The same, and in `also`, a cgroup of another hierarchy.
pub fn command_also_in(cgroup: &Cgroup, also: Option<&Path>, program: impl AsRef<OsStr>) -> Command {
    const JOIN: &str = r#"echo $$ >"$0/cgroup.procs" && echo $$ >"$1/cgroup.procs" && shift && exec "$@""#;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", JOIN]).arg(cgroup.path()).arg(also.unwrap_or(cgroup.path())).arg(program);
    // A process group of its own: Ctrl-C is for the harness, which then ends it.
    command.process_group(0);
    command
}

/// A running program.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts `command` (from [`command`]) in `netns`; what it prints goes to `log`.
    pub fn start(netns: &NetNs, mut command: Command, log: &Path) -> Result<Self> {
        let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = netns.with(|| command.spawn()).with_context(|| format!("can't start {name}"))?;
        Ok(Self { child, log: log.to_owned(), name })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it and waits until it is gone. When kill() was called and when it had returned, by
    /// [`monotonic_ns`].
    pub fn kill(&mut self) -> Range<u64> {
        let begin = monotonic_ns();
        let _ = self.child.kill();
        let end = monotonic_ns();
        let _ = self.child.wait();
        begin..end
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(begin.elapsed() < deadline, "{} does not end:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
