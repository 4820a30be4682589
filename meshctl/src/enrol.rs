//! `meshctl enrol` and `meshctl leave`: makes a program that runs already, or a unit, a workload of this node,
//! and ends that.
//!
//! It is named by its cgroup: what lives in it, or will, is the workload. Not here: starting programs (`run`).

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::local::{Request, VERSION};

use crate::agent::RunDir;
use crate::workload::{Workload, say};

/// Makes a unit, or what lives in a cgroup, a workload of this node.
#[derive(Args, Debug)]
pub struct Enrol {
    #[command(flatten)]
    workload: Workload,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    agent: RunDir,
}

/// Where it lives.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Place {
    /// A cgroup's directory.
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// A systemd unit that runs.
    #[arg(long)]
    unit: Option<String>,
}

impl Enrol {
    /// Enrols it, until its cgroup is empty.
    pub fn run(self) -> Result<()> {
        let (path, called) = match (&self.place.cgroup, &self.place.unit) {
            (Some(path), _) => {
                (path.clone(), path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            }
            (None, Some(unit)) => (cgroup_of(unit)?, unit.clone()),
            (None, None) => bail!("say --cgroup or --unit"),
        };
        let cgroup = File::open(&path).with_context(|| format!("the cgroup {}", path.display()))?;
        let netns = namespace_of(&path)?;
        let stem =
            called.strip_suffix(".service").or_else(|| called.strip_suffix(".scope")).unwrap_or(&called);
        let request = self.workload.request("enrol", plain(stem));
        say(&self.agent.connect()?.ask(&request, &[netns.as_fd(), cgroup.as_fd()])?);
        Ok(())
    }
}

/// A DNS label of a unit's or a cgroup's name.
fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    name.chars().map(plain).take(63).collect::<String>().trim_matches('-').to_owned()
}

/// The cgroup that systemd runs a unit in.
fn cgroup_of(unit: &str) -> Result<PathBuf> {
    let asked =
        Command::new("systemctl").args(["show", "--property=ControlGroup", "--value", "--", unit]).output();
    let said = asked.context("systemctl: name the unit's cgroup instead (--cgroup)")?;
    let group = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if !said.status.success() || group.is_empty() {
        bail!(
            "the unit {unit} does not run: start it first, or start its program with `meshctl run --in-place`"
        );
    }
    Ok(mount_point()?.join(group.trim_start_matches('/')))
}

/// Where cgroup2 is mounted.
fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next() == Some("cgroup2")).then(|| PathBuf::from(path))
    });
    found.context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// The cgroup that this process is in.
pub fn own_cgroup() -> Result<File> {
    let text = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    let path =
        text.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup2")?;
    let path = mount_point()?.join(path);
    File::open(&path).with_context(|| format!("the cgroup {}", path.display()))
}

/// The network namespace of the first process in a cgroup; of an empty one: our own.
fn namespace_of(cgroup: &Path) -> Result<File> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs"))
        .with_context(|| format!("{} is not the directory of a cgroup", cgroup.display()))?;
    let first = procs.lines().find(|pid| *pid != "0").unwrap_or("self");
    File::open(format!("/proc/{first}/ns/net"))
        .with_context(|| format!("the network namespace of process {first}"))
}

/// Takes a workload out of the mesh; its program goes on.
#[derive(Args, Debug)]
pub struct Leave {
    /// Namespace of the mesh.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Name of the workload.
    name: String,
    /// Have nothing new sent to it for so many seconds first, while it serves what is under way.
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=600))]
    drain: u32,
    #[command(flatten)]
    agent: RunDir,
}

impl Leave {
    /// Withdraws it.
    pub fn run(self) -> Result<()> {
        let request = Request {
            v: VERSION,
            op: "leave".into(),
            namespace: self.namespace,
            name: self.name,
            drain_ms: self.drain * 1000,
            ..Request::default()
        };
        let mut agent = self.agent.connect()?;
        if self.drain > 0 {
            agent.be_patient()?;
        }
        agent.ask(&request, &[])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        enrol: Enrol,
    }

    #[test]
    fn it_is_a_unit_or_a_cgroup_and_names_are_labels() {
        let parse = |args: &[&str]| Cli::try_parse_from(args.iter().copied());
        assert!(parse(&["enrol", "--unit", "nginx.service", "--host-network"]).is_ok());
        assert!(parse(&["enrol", "--unit", "nginx.service", "--cgroup", "/x"]).is_err());
        assert!(parse(&["enrol", "--host-network"]).is_err());
        assert_eq!(plain("getty@tty1"), "getty-tty1");
        assert_eq!(plain("-.mount"), "mount");
    }

    #[test]
    fn what_is_no_cgroup_is_named() {
        assert!(
            format!("{:#}", namespace_of(Path::new("/etc")).unwrap_err())
                .contains("not the directory of a cgroup")
        );
    }
}
