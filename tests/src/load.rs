//! Load under way: `mesh-load` in a pod, its counters readable while it runs.
//!
//! `mesh-load` prints its counters as a JSON line ten times a second. Every connection or request that did
//! not give a full answer is an error, by operation and cause: nothing is retried, nothing forgiven.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{eventually::until, pod::Pod, process::own_program};

/// What `mesh-load` has counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Since it began.
    pub seconds: f64,
    /// Full answers (or connections, without requests).
    pub ok: u64,
    /// By operation and cause: `connect ConnectionRefused`.
    pub errors: BTreeMap<String, u64>,
    /// Full answers by the name in the body.
    pub servers: BTreeMap<String, u64>,
    /// connect(): median and 99th percentile, nanoseconds.
    pub connect_ns: [u64; 2],
    /// Connect and answer, or answer alone on a kept connection: the same, nanoseconds.
    pub total_ns: [u64; 2],
    /// The connections that failed: the first [`LOST_MAX`] of each thread.
    pub lost: Vec<Lost>,
}

/// Failed connections that are told one by one, a thread.
pub const LOST_MAX: usize = 1000;

/// The life of a connection that failed, in nanoseconds of [`crate::clock::monotonic_ns`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Lost {
    /// Just before connect().
    pub begun: u64,
    /// When the failure was seen.
    pub seen: u64,
}

impl Report {
    /// All errors.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// What to send.
#[must_use]
#[derive(Clone, Debug)]
pub struct Load {
    args: Vec<String>,
}

impl Load {
    /// A new connection for each request to `to`, from one thread, as fast as it goes.
    pub fn to(to: SocketAddr) -> Self {
        Self { args: vec![to.to_string()] }
    }

    fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.args.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// Threads.
    pub fn threads(self, threads: u32) -> Self {
        self.with("--threads", threads)
    }

    /// Operations a second, all threads together.
    pub fn rate(self, rate: u32) -> Self {
        self.with("--rate", rate)
    }

    /// Ends by itself after so many operations.
    pub fn count(self, count: u64) -> Self {
        self.with("--count", count)
    }

    /// Ends by itself after this time.
    pub fn time(self, time: Duration) -> Self {
        self.with("--seconds", time.as_secs_f64())
    }

    /// `Host:` of the requests.
    pub fn host(self, host: &str) -> Self {
        self.with("--host", host)
    }

    /// Path of the requests.
    pub fn path(self, path: &str) -> Self {
        self.with("--path", path)
    }

    /// Requests on one connection a thread, instead of a connection a request.
    pub fn keep_alive(mut self) -> Self {
        self.args.push("--keep-alive".to_owned());
        self
    }

    /// The client ends its connections, and not the server.
    pub fn hang_up(mut self) -> Self {
        self.args.push("--hang-up".to_owned());
        self
    }

    /// Connections alone: connect and reset.
    pub fn connect_only(mut self) -> Self {
        self.args.push("--connect-only".to_owned());
        self
    }

    /// Runs in `pod` to its end.
    #[track_caller]
    pub fn run(self, pod: &Pod) -> Report {
        self.start(pod).done()
    }

    /// Starts in `pod`; returns when the first answer or error was counted.
    #[track_caller]
    pub fn start(self, pod: &Pod) -> Running {
        self.spawn(pod, |command| pod.netns().with(|| command.spawn()))
    }

    fn spawn(self, pod: &Pod, spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>) -> Running {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = pod.work().join(format!("load-{number}.json"));
        let file = std::fs::File::create(&log).expect("make the load's log");
        let mut command = pod.command(own_program("mesh-load"));
        // It ends when the pipe does.
        command.args(&self.args).stdin(Stdio::piped()).stdout(file);
        let child = spawn(&mut command).expect("start mesh-load");
        let running = Running { child, log };
        let begun = |report: &Report| report.ok + report.failed() > 0;
        until(Duration::from_secs(10), "load begins", || running.now(), begun);
        running
    }
}

/// A `mesh-load` that runs.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it has counted, at most a tenth of a second ago.
    pub fn now(&self) -> Report {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete.lines().next_back().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
    }

    /// Waits until `more` further answers were counted.
    #[track_caller]
    pub fn go_on(&self, more: u64) -> Report {
        let goal = self.now().ok + more;
        until(Duration::from_secs(20), "load goes on", || self.now(), |report| report.ok >= goal)
    }

    /// Waits until it ends by itself; what it has counted.
    #[track_caller]
    pub fn done(mut self) -> Report {
        // wait() would close it.
        let stdin = self.child.stdin.take();
        self.child.wait().expect("mesh-load ends");
        drop(stdin);
        self.now()
    }

    /// Ends it; what it has counted.
    #[track_caller]
    pub fn stop(mut self) -> Report {
        drop(self.child.stdin.take());
        self.child.wait().expect("mesh-load ends");
        self.now()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
