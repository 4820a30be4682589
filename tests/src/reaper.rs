//! Removing what a mesh made, whatever happens to the harness.
//!
//! One shell script (`reaper.sh`) does it, in a session of its own, started before anything else is made.
//! It waits for the end of a pipe that we hold: dropped, panicked, interrupted or killed, we let go of it.
//! Should both be killed, the next run [`sweep`]s.
//!
//! Invariant: there is one way to clean up, and it is used on every run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};

use crate::cgroup;

const SCRIPT: &str = include_str!("reaper.sh");
const PREFIX: &str = "nm-";

/// Names and places of one mesh.
#[derive(Clone, Debug)]
pub struct Place {
    /// `nm-<process id>-<number>`: starts the name of everything that the mesh makes.
    pub id: String,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Its files: logs, sockets, configuration, bpffs.
    pub work: PathBuf,
}

impl Place {
    /// The place with this id.
    pub fn new(id: &str) -> Result<Self> {
        let cgroup = cgroup::mount_point()?.join(id);
        Ok(Self { id: id.to_owned(), cgroup, work: PathBuf::from("/tmp").join(id) })
    }
}

/// The script, waiting. It runs when the last clone is dropped, or at [`Reaper::run`].
#[derive(Clone)]
pub struct Reaper(Arc<Mutex<Waiting>>);

struct Waiting(Child);

impl Reaper {
    /// Starts it for `place`.
    pub fn start(place: &Place) -> Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Waiting(spawn(place, Stdio::piped())?)))))
    }

    /// Removes everything now; returns when it is done.
    pub fn run(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).run();
    }
}

impl Waiting {
    fn run(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.run();
    }
}

fn spawn(place: &Place, stdin: Stdio) -> Result<Child> {
    let mut command = Command::new("setsid");
    command.args(["/bin/sh", "-c", SCRIPT, "reaper", &place.id]).arg(&place.cgroup).arg(&place.work);
    command.stdin(stdin).stdout(Stdio::null());
    if std::env::var_os("NODEMESH_KEEP").is_none() {
        command.stderr(Stdio::null());
    }
    command.spawn().context("can't start the reaper (setsid of util-linux)")
}

/// What is still there of `place`: nothing, after the reaper ran.
pub fn remains(place: &Place) -> Vec<String> {
    let netns = names(Path::new("/run/netns")).filter(|name| name.starts_with(&format!("{}-", place.id)));
    let mut found: Vec<String> = netns.map(|name| format!("network namespace {name}")).collect();
    for path in [&place.cgroup, &place.work] {
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if mounts.contains(&format!("{}/", place.work.display())) {
        found.push("a mount".to_owned());
    }
    found
}

/// Removes what killed runs left: everything of ours whose process is gone.
pub fn sweep() -> Result<()> {
    let mut ids: Vec<String> = Vec::new();
    for folder in [cgroup::mount_point()?, "/tmp".into(), "/run/netns".into()] {
        ids.extend(names(&folder).filter_map(|name| owner_gone(&name)));
    }
    ids.sort();
    ids.dedup();
    for id in ids {
        spawn(&Place::new(&id)?, Stdio::null())?.wait()?;
    }
    Ok(())
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// The mesh's id in `name`, where the process that made it is gone.
fn owner_gone(name: &str) -> Option<String> {
    let mut words = name.strip_prefix(PREFIX)?.split('-');
    let (pid, number) = (words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?);
    (!Path::new(&format!("/proc/{pid}")).exists()).then(|| format!("{PREFIX}{pid}-{number}"))
}
