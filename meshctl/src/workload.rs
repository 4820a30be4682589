//! What a workload of this node is: the arguments that `run` and `enrol` share, and the request that they make.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::Args;
use mesh_api::local::{Answer, Membership, Request, VERSION};

/// A workload.
#[derive(Args, Debug)]
pub struct Workload {
    /// Namespace of the mesh.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Name of the workload; default: the service's, program's or unit's name; for a program with the process id.
    #[arg(long)]
    name: Option<String>,
    /// Service account: what it may be is in the node's join token.
    #[arg(long, default_value = "default")]
    service_account: String,
    /// Service that it serves, in its namespace.
    #[arg(long, requires = "port")]
    pub service: Option<String>,
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
    /// An address that it is reached at; default: those of its network namespace.
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,
    /// Its place in the services that it serves: higher numbers are sent to when lower ones are too weak.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=15))]
    priority: u8,
    /// It shares the host's network: known by its cgroup and the port that it serves, the rest is the host's.
    #[arg(long)]
    host_network: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Workload {
    /// The request that enrols it; `name`: where none was given.
    pub fn request(&self, op: &str, name: String) -> Request {
        let membership = |(service, target_port): (&String, u16)| Membership {
            service: service.clone(),
            port_name: self.port_name.clone().unwrap_or_default(),
            target_port,
            weight: self.weight,
        };
        Request {
            v: VERSION,
            op: op.into(),
            namespace: self.namespace.clone(),
            name: self.name.clone().unwrap_or(name),
            service_account: self.service_account.clone(),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            addresses: self.addresses.clone(),
            memberships: self.service.iter().zip(self.port).map(membership).collect(),
            host_network: self.host_network,
            priority: self.priority,
            ..Request::default()
        }
    }
}

/// Tells what became of it.
pub fn say(answer: &Answer) {
    for condition in &answer.conditions {
        eprintln!("meshctl: {condition}");
    }
    if let Some(workload) = &answer.workload {
        let addresses: Vec<String> = workload.addresses.iter().map(IpAddr::to_string).collect();
        let (namespace, name) = (&workload.namespace, &workload.name);
        eprintln!("meshctl: {namespace}/{name} is part of the mesh at {}", addresses.join(" and "));
    }
}
