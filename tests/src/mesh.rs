//! A mesh: a fabric with a control plane, nodes joined to it, pods on the nodes.
//!
//! ```text
//!            fabric: br0 10.90.0.1, mesh-control
//!            │ veth               │ veth
//!   node1 10.90.1.1      node2 10.90.1.2     (mesh-agent each)
//!     │ pods 10.91.1.0/24   │ pods 10.91.2.0/24
//!   pod … pod …           pod …
//! ```
//! IPv6 beside it: fd90::/64 on the fabric, fd91:0:0:N::/64 for the pods of node N.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::{
    cgroup::Cgroup,
    eventually,
    metrics::Metrics,
    netns::NetNs,
    node::{AgentSpec, Node, tail},
    pod::PodBuilder,
    process::{self, Process, own_program},
    reaper::{self, Place, Reaper},
    resources, shell,
};

/// The control plane's address on the fabric.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);

/// The network that joins nodes, and the control plane in it.
pub struct Fabric {
    /// Its namespace.
    pub netns: NetNs,
    cgroup: Cgroup,
    work: PathBuf,
    control_args: Vec<String>,
    control: Mutex<Option<Process>>,
}

/// A mesh under construction.
#[must_use]
#[derive(Default)]
pub struct MeshBuilder {
    nodes: u8,
    agent_args: Vec<String>,
    places: Vec<(String, String)>,
    control_args: Vec<String>,
    volatile: bool,
    mtls: bool,
    agent_cgroup: Option<PathBuf>,
}

impl MeshBuilder {
    /// How many nodes (default 1).
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Further arguments of every `mesh-agent run`.
    pub fn agent_args(mut self, args: &[&str]) -> Self {
        self.agent_args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// Region and zone of each node, the first's first.
    pub fn places(mut self, places: &[(&str, &str)]) -> Self {
        self.places = places.iter().map(|&(region, zone)| (region.to_owned(), zone.to_owned())).collect();
        self
    }

    /// Further arguments of `mesh-control serve`.
    pub fn control_args(mut self, args: &[&str]) -> Self {
        self.control_args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// The control plane's store is in memory: what it does costs no fsync.
    pub fn volatile_store(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// Connections between nodes go through tunnels, as they do where nobody says otherwise. Without it the mesh
    /// says `off`: most stories are about the kernel path.
    pub fn mtls(mut self) -> Self {
        self.mtls = true;
        self
    }

    /// A cgroup of another hierarchy that agents join as well.
    pub fn agent_cgroup(mut self, path: &Path) -> Self {
        self.agent_cgroup = Some(path.to_owned());
        self
    }

    /// Networks and files only: no control plane, no agents.
    #[track_caller]
    pub fn lay(self) -> Mesh {
        Mesh::lay(self).unwrap_or_else(|error| panic!("no mesh: {error:#}"))
    }

    /// Everything runs and every agent is ready.
    #[track_caller]
    pub fn up(self) -> Mesh {
        let mesh = self.lay();
        mesh.start();
        mesh
    }
}

/// A running mesh. Dropped, everything of it is removed.
pub struct Mesh {
    nodes: Vec<Arc<Node>>,
    fabric: Fabric,
    place: Place,
    next_pod: Mutex<BTreeMap<u8, u8>>,
    mtls: bool,
    // Last: it runs when all else is dropped.
    reaper: Reaper,
}

impl Mesh {
    /// A mesh of one node, until the builder says otherwise.
    pub fn builder() -> MeshBuilder {
        MeshBuilder { nodes: 1, ..MeshBuilder::default() }
    }

    fn lay(spec: MeshBuilder) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if number == 0 {
            reaper::sweep()?;
        }
        let place = Place::new(&format!("nm-{}-{number}", std::process::id()))?;
        let reaper = Reaper::start(&place)?;
        let work = place.work.join("control");
        fs::create_dir_all(work.join("data"))?;
        if spec.volatile {
            shell::run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(work.join("data")), "")?;
        }
        let netns = NetNs::new(&format!("{}-fabric", place.id))?;
        netns.ip(&[
            "link add br0 address 02:90:00:00:00:01 type bridge mcast_snooping 0".to_owned(),
            format!("addr add {CONTROL}/16 dev br0"),
            "addr add fd90::1/64 dev br0 nodad".to_owned(),
            "link set br0 up".to_owned(),
        ])?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let cgroup = Cgroup::new(place.cgroup.join("control"))?;
        let fabric =
            Fabric { netns, cgroup, work, control_args: spec.control_args, control: Mutex::new(None) };
        let agent = |number: u8| {
            let mut args = spec.agent_args.clone();
            if let Some((region, zone)) = spec.places.get(usize::from(number) - 1) {
                args.extend(["--region", region, "--zone", zone].map(str::to_owned));
            }
            AgentSpec { args, cgroup: spec.agent_cgroup.clone() }
        };
        let nodes = (1..=spec.nodes)
            .map(|number| Ok(Arc::new(Node::new(&place, &fabric, number, &agent(number))?)))
            .collect::<Result<_>>()?;
        Ok(Self { nodes, fabric, place, next_pod: Mutex::default(), mtls: spec.mtls, reaper })
    }

    /// Control plane and agents, until every agent is ready.
    #[track_caller]
    pub fn start(&self) {
        self.start_control();
        if !self.mtls {
            self.apply(&resources::mesh_mtls("off"));
        }
        for node in &self.nodes {
            self.issue_token(node);
            node.start_agent();
        }
        for node in &self.nodes {
            node.wait_ready();
        }
    }

    /// The node with this number; the first is 1.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(|node| &**node)
    }

    /// A pod on the node with this number.
    pub fn pod(&self, node: u8, name: &str) -> PodBuilder {
        let mut next = self.next_pod.lock().unwrap_or_else(PoisonError::into_inner);
        let number = next.entry(node).or_insert(9);
        *number += 1;
        PodBuilder::new(self.nodes[usize::from(node) - 1].clone(), *number, &self.place.id, name)
    }

    /// What removes it all, for who must do so from another thread.
    pub fn reaper(&self) -> Reaper {
        self.reaper.clone()
    }

    /// The fabric's namespace.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Names and places of all that it made.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Starts the control plane and waits until it answers.
    #[track_caller]
    pub fn start_control(&self) {
        self.fabric.start().unwrap_or_else(|error| panic!("start mesh-control: {error:#}"));
        eventually::within(Duration::from_secs(20), "mesh-control answers", || {
            if let Some(status) = self.fabric.control().as_mut().and_then(Process::ended) {
                panic!("mesh-control ended ({status}):\n{}", self.fabric.log());
            }
            self.try_meshctl(&["status"], "").is_ok()
        });
    }

    /// Starts the control plane; `meshctl` may not be able to ask it (a certificate of somebody else's).
    #[track_caller]
    pub fn start_control_unasked(&self) {
        self.fabric.start().unwrap_or_else(|error| panic!("start mesh-control: {error:#}"));
    }

    /// SIGKILL for the control plane.
    pub fn kill_control(&self) {
        *self.fabric.control() = None;
    }

    /// Sends the control plane a signal.
    pub fn signal_control(&self, signal: Signal) {
        if let Some(control) = &*self.fabric.control() {
            control.signal(signal);
        }
    }

    /// Makes a join token for `node`.
    #[track_caller]
    pub fn issue_token(&self, node: &Node) {
        let token = self.meshctl(
            &["token", "create", "--node", node.name(), "--allow", "default/*", "--allow", "elsewhere/*"],
            "",
        );
        fs::write(node.token_file(), token.trim()).expect("write the join token");
    }

    /// Applies resources.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.meshctl(&["apply", "-f", "-"], yaml);
    }

    /// Runs `meshctl` against the control plane; what it printed.
    #[track_caller]
    pub fn meshctl(&self, args: &[&str], stdin: &str) -> String {
        self.try_meshctl(args, stdin).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Runs `meshctl`, or says what it said.
    pub fn try_meshctl(&self, args: &[&str], stdin: &str) -> Result<String> {
        let mut command = self.meshctl_command(args);
        self.fabric.netns.with(|| shell::run(&mut command, stdin)).context("meshctl")
    }

    /// `meshctl` against the control plane, to be run in the fabric.
    pub fn meshctl_command(&self, args: &[&str]) -> Command {
        self.meshctl_as(&self.fabric.data().join("admin.token"), args)
    }

    /// The same with the token in this file.
    pub fn meshctl_as(&self, token: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(own_program("meshctl"));
        command.args(["--server", &format!("https://{CONTROL}:15080")]);
        command.arg("--ca").arg(self.fabric.data().join("ca.pem"));
        command.arg("--token-file").arg(token);
        command.args(args);
        command
    }
}

impl Fabric {
    /// The cgroup that the control plane runs in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The control plane's data directory.
    pub fn data(&self) -> PathBuf {
        self.work.join("data")
    }

    /// What the control plane logged, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.work.join("mesh-control.log")).unwrap_or_default()
    }

    /// The control plane's metrics, now.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.metrics_page())
    }

    /// The same as text.
    #[track_caller]
    pub fn metrics_page(&self) -> String {
        let token = fs::read_to_string(self.data().join("admin.token")).expect("the admin's token");
        let mut command = Command::new("curl");
        command.args(["-sSf", "--max-time", "5", "--cacert"]).arg(self.data().join("ca.pem"));
        command.args(["-H", &format!("Authorization: Bearer {}", token.trim())]);
        command.arg(format!("https://{CONTROL}:15080/metrics"));
        let page = self.netns.with(|| shell::run(&mut command, ""));
        page.unwrap_or_else(|error| panic!("scrape the control plane: {error:#}"))
    }

    /// The arguments of `mesh-control`.
    pub fn args(&self) -> Vec<String> {
        let mut args = ["serve", "--data"].map(str::to_owned).to_vec();
        args.push(self.data().to_string_lossy().into_owned());
        args.extend(["--name".to_owned(), CONTROL.to_string()]);
        args.extend(self.control_args.iter().cloned());
        args
    }

    fn start(&self) -> Result<()> {
        let mut command = process::command(&self.cgroup, own_program("mesh-control"));
        command.args(self.args());
        let process = Process::start(&self.netns, command, &self.work.join("mesh-control.log"))?;
        *self.control() = Some(process);
        Ok(())
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("==== {}: what was going on", self.place.id);
            eprintln!("---- mesh-control\n{}", tail(&self.fabric.log(), 40));
            for node in self.nodes() {
                eprintln!("{}", node.report());
            }
            // For looking around: everything stays for so many seconds.
            if let Some(seconds) = std::env::var("NODEMESH_HOLD").ok().and_then(|text| text.parse().ok()) {
                eprintln!("---- held for {seconds} s: {}", self.place.work.display());
                std::thread::sleep(Duration::from_secs(seconds));
            }
        }
    }
}
