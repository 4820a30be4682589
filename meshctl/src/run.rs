//! `meshctl run`: starts a program as a workload of this node.
//!
//! Asks the node's agent over `agent.sock` for a cgroup and enrolment in the network namespace that it is
//! itself in, waits for the confirmation, then becomes the program. The agent registers it, renews its
//! lease, and withdraws it when its cgroup is empty; nothing of meshctl stays. With `--in-place` it stays in the
//! cgroup that it is in: that of a systemd unit, which goes on looking after the program.
//!
//! Not here: the control plane, which this command never speaks to.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::local::Request;

use crate::agent::RunDir;
use crate::enrol::own_cgroup;
use crate::workload::{Workload, say};

/// Starts a program as a workload of this node.
#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    workload: Workload,
    /// Stay in this cgroup, which is the workload's alone: as the program of a systemd unit.
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    agent: RunDir,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Run {
    /// Enrols, then becomes the program: returns only with an error.
    pub fn run(self) -> Result<()> {
        let Some((program, arguments)) = self.command.split_first() else { bail!("no program was given") };
        let request = self.request(program);
        let netns = std::fs::File::open("/proc/self/ns/net").context("this network namespace")?;
        let cgroup = if self.in_place { Some(own_cgroup()?) } else { None };
        let descriptors: Vec<_> =
            [Some(&netns), cgroup.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
        say(&self.agent.connect()?.ask(&request, &descriptors)?);
        drop((netns, cgroup));
        // The process leaves the mesh by ending: the agent sees the empty cgroup.
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot start {}", Path::new(program).display()))
    }

    fn request(&self, program: &OsString) -> Request {
        let file = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = default_name(self.workload.service.as_deref().unwrap_or(&file), std::process::id());
        self.workload.request(if self.in_place { "enrol" } else { "run" }, name)
    }
}

/// A DNS label of a name and a process id.
fn default_name(of: &str, pid: u32) -> String {
    let pid = format!("-{pid}");
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = of.chars().map(plain).take(63 - pid.len()).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { format!("workload{pid}") } else { format!("{name}{pid}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Run,
    }

    #[test]
    fn the_request_is_what_was_said() {
        let args =
            ["run", "--service", "cart", "--port", "8080", "--label", "app=cart", "--", "./cart", "-v"];
        let run = Cli::try_parse_from(args).ok().unwrap().run;
        let request = run.request(&run.command[0]);
        assert_eq!((request.op.as_str(), request.namespace.as_str()), ("run", "default"));
        assert_eq!(
            (request.memberships[0].service.as_str(), request.memberships[0].target_port),
            ("cart", 8080)
        );
        assert_eq!(request.name, format!("cart-{}", std::process::id()));
        assert_eq!(request.labels["app"], "cart");
    }

    #[test]
    fn a_service_needs_a_port_and_there_must_be_a_program() {
        assert!(Cli::try_parse_from(["run", "--service", "cart", "--", "./cart"]).is_err());
        assert!(Cli::try_parse_from(["run", "--service", "cart", "--port", "80"]).is_err());
        assert!(Cli::try_parse_from(["run", "--", "./client"]).is_ok());
    }

    #[test]
    fn default_names_are_labels() {
        assert_eq!(default_name("my_App.v2", 7), "my-app-v2-7");
        assert_eq!(default_name("--", 7), "workload-7");
        assert!(default_name(&"x".repeat(100), 4_000_000).len() <= 63);
    }
}
