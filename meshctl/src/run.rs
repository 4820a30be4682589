//! `meshctl run`: starts a program as a workload of this node.
//!
//! Asks the node's agent over `agent.sock` for a cgroup and enrolment in the network namespace that it is
//! itself in, waits for the confirmation, then becomes the program. The agent registers it, renews its
//! lease, and withdraws it when its cgroup is empty; nothing of meshctl stays.
//!
//! Not here: the control plane, which this command never speaks to.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::local::{Membership, Request, VERSION};

use crate::agent::RunDir;

/// Starts a program as a workload of this node.
#[derive(Args, Debug)]
pub struct Run {
    /// Namespace of the mesh.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Name of the workload; default: the service's or the program's name, with the process id.
    #[arg(long)]
    name: Option<String>,
    /// Service account: what it may be is in the node's join token.
    #[arg(long, default_value = "default")]
    service_account: String,
    /// Service that it serves, in its namespace.
    #[arg(long, requires = "port")]
    service: Option<String>,
    /// Where it listens.
    #[arg(long, requires = "service", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Which port of the service; needed where it has several.
    #[arg(long, requires = "service")]
    port_name: Option<String>,
    /// Its share of the service's connections; 0 takes no new ones.
    #[arg(long, requires = "service", default_value_t = 1)]
    weight: u16,
    /// A label; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// An address that it is reached at; default: those of this network namespace.
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    #[command(flatten)]
    agent: RunDir,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Run {
    /// Enrols, then becomes the program: returns only with an error.
    pub fn run(self) -> Result<()> {
        let Some((program, arguments)) = self.command.split_first() else { bail!("no program was given") };
        let request = self.request(program);
        let netns = std::fs::File::open("/proc/self/ns/net").context("this network namespace")?;
        let answer = self.agent.connect()?.ask(&request, Some(netns.as_fd()))?;
        drop(netns);
        for condition in &answer.conditions {
            eprintln!("meshctl: {condition}");
        }
        if let Some(workload) = &answer.workload {
            let addresses: Vec<String> = workload.addresses.iter().map(IpAddr::to_string).collect();
            let (namespace, name) = (&workload.namespace, &workload.name);
            eprintln!("meshctl: {namespace}/{name} is part of the mesh at {}", addresses.join(" and "));
        }
        // The process leaves the mesh by ending: the agent sees the empty cgroup.
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot start {}", Path::new(program).display()))
    }

    fn request(&self, program: &OsString) -> Request {
        let name = self.name.clone().unwrap_or_else(|| {
            let file = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
            default_name(self.service.as_deref().unwrap_or(&file), std::process::id())
        });
        let membership = |(service, target_port): (&String, u16)| Membership {
            service: service.clone(),
            port_name: self.port_name.clone().unwrap_or_default(),
            target_port,
            weight: self.weight,
        };
        Request {
            v: VERSION,
            op: "run".into(),
            namespace: self.namespace.clone(),
            name,
            service_account: self.service_account.clone(),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            addresses: self.addresses.clone(),
            memberships: self.service.iter().zip(self.port).map(membership).collect(),
            ..Request::default()
        }
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
