//! cgroup v2 subtrees.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A cgroup v2 directory that a mesh made.
#[derive(Clone, Debug)]
pub struct Cgroup(PathBuf);

/// Where cgroup v2 is mounted: alone or beside version 1.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut found = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, path, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.next().context("no cgroup v2: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

impl Cgroup {
    /// Makes the directory, and its parents.
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)
            .with_context(|| format!("can't make {}: stories run as root", path.display()))?;
        Ok(Self(path))
    }

    /// A cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::new(self.0.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its directory, open: what the agent takes as a locator.
    pub fn open(&self) -> Result<File> {
        Ok(File::open(&self.0)?)
    }

    /// The processes in it, not below it.
    pub fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether any process is in it or below.
    pub fn populated(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Kills everything in it and below.
    pub fn kill(&self) {
        // Gone already is what we want.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
    }
}
