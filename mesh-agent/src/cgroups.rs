//! Where cgroup2 is, and whether this process is where it must be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where cgroup2 is mounted on this machine.
pub fn mount_point() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut fields = line.split(' ');
            let path = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
        })
        .context("cgroup2 is not mounted: mount it (`mount -t cgroup2 none DIR`) and give --cgroup-root DIR")
}

/// The agent's accepted sockets are seen by the programs only when the agent itself is below the directory
/// that they are attached to.
pub fn check_own(root: &Path) -> anyhow::Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let Some(own) = own.lines().find_map(|line| line.strip_prefix("0::")) else {
        bail!("this process is in no cgroup2 hierarchy: the kernel needs one (CONFIG_CGROUPS)");
    };
    let mount = mount_point()?;
    let inside = root.strip_prefix(&mount).with_context(|| {
        format!(
            "--cgroup-root {}: is not below {}, where cgroup2 is mounted",
            root.display(),
            mount.display()
        )
    })?;
    if !root.is_dir() {
        bail!("--cgroup-root {}: there is no such cgroup", root.display());
    }
    let own = Path::new(own.trim_start_matches('/'));
    if !own.starts_with(inside) {
        bail!(
            "this process is in the cgroup /{}, outside --cgroup-root {}: start mesh-agent in a cgroup below it",
            own.display(),
            root.display()
        );
    }
    Ok(())
}
