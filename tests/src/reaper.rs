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

/// The script, waiting.
pub struct Reaper(Child);

impl Reaper {
    /// Starts it for `place`.
    pub fn start(place: &Place) -> Result<Self> {
        Ok(Self(spawn(place, Stdio::piped())?))
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
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
