//! A pod: a network namespace behind its node's, a cgroup under the node, real programs inside.
//!
//! A pod is enrolled as Kubernetes would do it: descriptors of its namespace and cgroup go over the agent's
//! socket. A pause process keeps the cgroup populated; [`Pod::kill`] ends everything in it, and the agent
//! learns that from the empty cgroup.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    cgroup::Cgroup,
    netns::NetNs,
    node::Node,
    process::{self, Process},
    shell,
};

/// A pod under construction.
#[must_use]
pub struct PodBuilder {
    node: Arc<Node>,
    number: u8,
    id: String,
    name: String,
    namespace: String,
    account: String,
    labels: Value,
    memberships: Vec<Value>,
    priority: u8,
    enrolled: bool,
    beside: bool,
    host: bool,
}

impl PodBuilder {
    pub(crate) fn new(node: Arc<Node>, number: u8, id: &str, name: &str) -> Self {
        Self {
            node,
            number,
            id: id.to_owned(),
            name: name.to_owned(),
            namespace: "default".to_owned(),
            account: "default".to_owned(),
            labels: json!({}),
            memberships: Vec::new(),
            priority: 0,
            enrolled: true,
            beside: false,
            host: false,
        }
    }

    /// Its service account.
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// Its mesh namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// A label, for selectors.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels[key] = json!(value);
        self
    }

    /// Serves the port `port_name` of `service` at its own `target_port`.
    pub fn serves(mut self, service: &str, port_name: &str, target_port: u16) -> Self {
        self.memberships.push(json!({"service": service, "portName": port_name, "targetPort": target_port}));
        self
    }

    /// The weight of the membership named last.
    pub fn weight(mut self, weight: u32) -> Self {
        if let Some(last) = self.memberships.last_mut() {
            last["weight"] = json!(weight);
        }
        self
    }

    /// Its priority: 0 the first.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Not enrolled until [`Pod::enrol`].
    pub fn outside(mut self) -> Self {
        self.enrolled = false;
        self
    }

    /// Never enrolled, its cgroup beside the node's: no program of the agent sees it.
    pub fn beside(mut self) -> Self {
        self.beside = true;
        self.outside()
    }

    /// Not a pod but a unit of the host: in the node's own network namespace, known by its cgroup.
    pub fn on_host(mut self) -> Self {
        self.host = true;
        self
    }

    /// Makes it, and enrols it.
    #[track_caller]
    pub fn up(self) -> Pod {
        let enrolled = self.enrolled;
        let name = self.name.clone();
        let mut pod = Pod::new(self).unwrap_or_else(|error| panic!("pod {name}: {error:#}"));
        if enrolled {
            pod.enrol();
        }
        pod
    }
}

/// One pod of a [`crate::Mesh`].
pub struct Pod {
    spec: PodBuilder,
    netns: NetNs,
    cgroup: Cgroup,
    work: PathBuf,
    pause: Option<Process>,
}

impl Pod {
    fn new(spec: PodBuilder) -> Result<Self> {
        let host = spec.host;
        let netns = if host {
            spec.node.netns().share()?
        } else {
            NetNs::new(&format!("{}-{}", spec.id, spec.name))?
        };
        let node = spec.node.cgroup().path();
        let parent = match (spec.beside, host) {
            (true, _) => node.with_extension("beside"),
            (false, true) => node.join("units"),
            (false, false) => node.join("pods"),
        };
        let cgroup = Cgroup::new(parent.join(&spec.name))?;
        let work = spec.node.work().join("pods").join(&spec.name);
        fs::create_dir_all(&work)?;
        let mut pod = Self { spec, netns, cgroup, work, pause: None };
        if host {
            pod.start_pause();
            return Ok(pod);
        }
        let (node, number) = (pod.spec.node.number(), pod.spec.number);
        pod.spec.node.netns().ip(&[
            format!("link add p{number} type veth peer name eth0 netns {}", pod.netns.name()),
            format!("link set p{number} master pods up"),
        ])?;
        pod.netns.ip(&[
            format!("addr add {}/24 dev eth0", pod.ip()),
            format!("addr add {}/64 dev eth0 nodad", pod.ip6()),
            "link set eth0 up".to_owned(),
            format!("route add default via 10.91.{node}.1"),
            format!("route add default via fd91:0:0:{node}::1"),
        ])?;
        pod.start_pause();
        Ok(pod)
    }

    fn start_pause(&mut self) {
        let mut command = process::command(&self.cgroup, "sleep");
        command.arg("infinity");
        self.pause = Some(Process::start(&self.netns, command, &self.work.join("pause.log")).expect("pause"));
        crate::eventually("the pod's cgroup is populated", || self.cgroup.populated());
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.spec.node
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> Ipv4Addr {
        if self.spec.host {
            return self.spec.node.address();
        }
        Ipv4Addr::new(10, 91, self.spec.node.number(), self.spec.number)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        if self.spec.host {
            return self.spec.node.address6();
        }
        Ipv6Addr::new(0xfd91, 0, 0, u16::from(self.spec.node.number()), 0, 0, 0, u16::from(self.spec.number))
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Where its files are.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Enrols it; returns when the agent has confirmed.
    #[track_caller]
    pub fn enrol(&mut self) {
        if let Err(error) = self.try_enrol() {
            panic!("enrol {}: {error:#}", self.name());
        }
    }

    /// Enrols it, or says why not.
    pub fn try_enrol(&mut self) -> Result<()> {
        let spec = &self.spec;
        let cgroup = self.cgroup.open()?;
        let request = json!({
            "namespace": spec.namespace, "name": spec.name, "serviceAccount": spec.account,
            "labels": spec.labels, "memberships": spec.memberships, "hostNetwork": spec.host,
            "priority": spec.priority,
            "addresses": [self.ip().to_string(), self.ip6().to_string()],
        });
        spec.node.ask("enrol", request, &[self.netns.file().as_fd(), cgroup.as_fd()])?;
        Ok(())
    }

    /// Leaves the mesh; programs go on.
    #[track_caller]
    pub fn leave(&self) {
        let request = json!({"namespace": self.spec.namespace, "name": self.spec.name});
        self.spec.node.ask("leave", request, &[]).expect("leave the mesh");
    }

    /// Ends every process in it, as a crash of the whole pod.
    pub fn kill(&self) {
        self.cgroup.kill();
    }

    /// The same, after nothing new was sent to it for a while.
    #[track_caller]
    pub fn drain(&self, milliseconds: u32) {
        let request =
            json!({"namespace": self.spec.namespace, "name": self.spec.name, "drainMs": milliseconds});
        self.spec.node.ask("leave", request, &[]).expect("drain and leave the mesh");
    }

    /// After [`Self::kill`]: alive again; its programs and its enrolment are to be made anew.
    #[track_caller]
    pub fn restart(&mut self) {
        self.start_pause();
    }

    /// Starts a program in it; what it prints goes to `<name>.log` in its directory.
    #[track_caller]
    pub fn start(&self, name: &str, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Process {
        let mut command = process::command(&self.cgroup, program);
        command.args(args).current_dir(&self.work);
        Process::start(&self.netns, command, &self.work.join(format!("{name}.log")))
            .unwrap_or_else(|error| panic!("{name} in {}: {error:#}", self.name()))
    }

    /// A command that runs in it once it is spawned inside [`NetNs::with`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = process::command(&self.cgroup, program);
        command.current_dir(&self.work);
        command
    }

    /// Runs a program in it to its end; what it printed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        command.args(args);
        self.netns.with(|| shell::run(&mut command, ""))
    }
}
