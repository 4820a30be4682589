//! A node: a network namespace with its own cgroup subtree, bpffs and mesh-agent.
//!
//! The agent runs inside the node's namespace and in `<node>/agent`; its BPF programs hang on `<node>`, so
//! the agents of a mesh, and of meshes side by side, never see each other's sockets.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use mesh_common::{maps, verdict::Verdict};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    agent_socket,
    cgroup::Cgroup,
    eventually,
    mesh::{CONTROL, Fabric},
    metrics::Metrics,
    netns::NetNs,
    pins,
    process::{self, Process, own_program},
    reaper::Place,
    shell,
};

/// Where an agent serves `/metrics`.
const METRICS_PORT: u16 = 15090;

/// What is special about the agents of a mesh.
#[derive(Clone, Default)]
pub(crate) struct AgentSpec {
    /// Further arguments.
    pub args: Vec<String>,
    /// A cgroup of another hierarchy to join.
    pub cgroup: Option<PathBuf>,
}

/// One node of a [`crate::Mesh`].
pub struct Node {
    name: String,
    number: u8,
    netns: NetNs,
    cgroup: Cgroup,
    agent_cgroup: Cgroup,
    work: PathBuf,
    spec: AgentSpec,
    agent: Mutex<Option<Process>>,
}

impl Node {
    /// Namespace, links, cgroups, bpffs: everything but the agent.
    pub(crate) fn new(place: &Place, fabric: &Fabric, number: u8, spec: &AgentSpec) -> Result<Self> {
        let name = format!("node{number}");
        let netns = NetNs::new(&format!("{}-{name}", place.id))?;
        let cgroup = Cgroup::new(place.cgroup.join(&name))?;
        let agent_cgroup = cgroup.child("agent")?;
        cgroup.child("pods")?;
        let work = place.work.join(&name);
        for folder in ["run", "state", "bpf", "pods"] {
            fs::create_dir_all(work.join(folder))?;
        }
        shell::run(Command::new("mount").args(["-t", "bpf", "none"]).arg(work.join("bpf")), "")?;
        let node = Self {
            name,
            number,
            netns,
            cgroup,
            agent_cgroup,
            work,
            spec: spec.clone(),
            agent: Mutex::new(None),
        };
        node.join(fabric)?;
        Ok(node)
    }

    /// The node's link to the fabric, and a bridge for its pods.
    fn join(&self, fabric: &Fabric) -> Result<()> {
        let number = self.number;
        fabric.netns.ip(&[
            format!("link add n{number} type veth peer name eth0 netns {}", self.netns.name()),
            format!("link set n{number} master br0 up"),
            format!("route add 10.91.{number}.0/24 via {}", self.address()),
            format!("route add fd91:0:0:{number}::/64 via fd90::1:{number}"),
        ])?;
        self.netns.sysctl("net/ipv4/ip_forward", "1")?;
        self.netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.netns.ip(&[
            format!("addr add {}/16 dev eth0", self.address()),
            format!("addr add fd90::1:{number}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            // An address of its own: a bridge without one changes it with its ports, under its neighbours' feet.
            format!("link add pods address 02:91:00:00:00:{number:02x} type bridge mcast_snooping 0"),
            format!("addr add 10.91.{number}.1/24 dev pods"),
            format!("addr add fd91:0:0:{number}::1/64 dev pods nodad"),
            "link set pods up".to_owned(),
            "route add default via 10.90.0.1".to_owned(),
            "route add default via fd90::1".to_owned(),
        ])
    }

    /// Its name, as the control plane knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 1 for the first.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its address on the fabric.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90, 1, self.number)
    }

    /// Its IPv6 address on the fabric.
    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd90, 0, 0, 0, 0, 0, 1, u16::from(self.number))
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The root of its cgroup subtree, where the BPF programs hang.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The cgroup that its agent runs in.
    pub fn agent_cgroup(&self) -> &Cgroup {
        &self.agent_cgroup
    }

    /// Where its files are.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.work.join("run/agent.sock")
    }

    /// Where the agent's pins are.
    pub fn bpffs(&self) -> PathBuf {
        self.work.join("bpf/nodemesh")
    }

    /// The file with its join token.
    pub fn token_file(&self) -> PathBuf {
        self.work.join("join-token")
    }

    /// The arguments of `mesh-agent run` on this node.
    pub fn agent_args(&self) -> Vec<String> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut args = vec!["run".to_owned()];
        let mut flag = |name: &str, value: String| args.extend([name.to_owned(), value]);
        flag("--node", self.name.clone());
        if !self.spec.args.iter().any(|arg| arg == "--control") {
            flag("--control", format!("https://{CONTROL}:15012"));
        }
        flag("--join-token-file", path(self.token_file()));
        flag("--run-dir", path(self.work.join("run")));
        flag("--state-dir", path(self.work.join("state")));
        flag("--cgroup-root", path(self.cgroup.path().to_owned()));
        flag("--bpffs", path(self.bpffs()));
        flag("--metrics", format!("0.0.0.0:{METRICS_PORT}"));
        args.extend(self.spec.args.iter().cloned());
        args
    }

    /// Starts the agent; does not wait.
    #[track_caller]
    pub fn start_agent(&self) {
        *self.agent() = Some(self.new_agent(&[]));
    }

    /// Starts an agent that takes over from the one that runs, and waits for that one's end.
    #[track_caller]
    pub fn hand_over(&self) -> ExitStatus {
        let successor = self.new_agent(&["--take-over"]);
        let mut predecessor = self.agent().replace(successor).expect("an agent runs");
        predecessor.wait(Duration::from_secs(40))
    }

    /// Starts an agent with further arguments, beside the one that runs; it is the caller's.
    #[track_caller]
    pub fn new_agent(&self, args: &[&str]) -> Process {
        let also = self.spec.cgroup.as_deref();
        let mut command = process::command_also_in(&self.agent_cgroup, also, own_program("mesh-agent"));
        command.args(self.agent_args()).args(args);
        let log = self.work.join("agent.log");
        Process::start(&self.netns, command, &log).expect("start mesh-agent")
    }

    /// Waits until the agent has the control plane's state in its maps.
    #[track_caller]
    pub fn wait_ready(&self) {
        let what = format!("the agent of {} is ready", self.name);
        eventually::within(Duration::from_secs(20), &what, || {
            if let Some(status) = self.agent().as_mut().and_then(Process::ended) {
                panic!("the agent of {} ended ({status}):\n{}", self.name, self.log());
            }
            self.get("/readyz").is_ok()
        });
    }

    /// SIGKILL, and gone. When kill() was called and when it had returned: see [`Process::kill`].
    pub fn kill_agent(&self) -> Range<u64> {
        self.agent().take().map_or(0..0, |mut agent| agent.kill())
    }

    /// Sends the agent a signal.
    pub fn signal_agent(&self, signal: Signal) {
        if let Some(agent) = &*self.agent() {
            agent.signal(signal);
        }
    }

    /// SIGTERM, and gone.
    #[track_caller]
    pub fn stop_agent(&self) {
        self.signal_agent(Signal::TERM);
        self.wait_agent();
        self.kill_agent();
    }

    /// The agent's process id.
    #[track_caller]
    pub fn agent_pid(&self) -> u32 {
        self.agent().as_ref().expect("an agent runs").pid()
    }

    /// What the agent logged, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.work.join("agent.log")).unwrap_or_default()
    }

    /// GET on the agent's metrics port.
    pub fn get(&self, path: &str) -> Result<String> {
        self.netns.http_get(SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT)), path)
    }

    /// The agent's metrics, now.
    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").expect("scrape the agent"))
    }

    /// A request over the agent's socket: `op`, further fields, descriptors.
    pub fn ask(&self, op: &str, fields: Value, descriptors: &[BorrowedFd<'_>]) -> Result<Value> {
        let mut request = json!({"v": 1, "op": op});
        if let (Some(request), Value::Object(fields)) = (request.as_object_mut(), fields) {
            request.extend(fields);
        }
        agent_socket::request(&self.socket(), &request, descriptors)
    }

    /// The certificates that the agent holds, and whom it believes, as it shows them.
    #[track_caller]
    pub fn identities(&self) -> Value {
        agent_socket::request_file(&self.socket(), &json!({"v": 1, "op": "identities"}))
            .unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    fn meshctl_command(&self, args: &[&str]) -> Command {
        let mut command = process::command(&self.agent_cgroup, own_program("meshctl"));
        command.args(args).arg("--run-dir").arg(self.work.join("run"));
        command
    }

    /// Runs `meshctl` against the agent; what it printed.
    pub fn meshctl(&self, args: &[&str]) -> Result<String> {
        let mut command = self.meshctl_command(args);
        self.netns.with(|| shell::run(&mut command, "")).context("meshctl")
    }

    /// Starts `meshctl` against the agent; what it prints is its log.
    #[track_caller]
    pub fn start_meshctl(&self, name: &str, args: &[&str]) -> Process {
        let log = self.work.join(format!("{name}.log"));
        Process::start(&self.netns, self.meshctl_command(args), &log).expect("start meshctl")
    }

    /// Ids of the programs on its cgroup.
    #[track_caller]
    pub fn programs(&self) -> Vec<u64> {
        let mut command = Command::new("bpftool");
        command.args(["-j", "cgroup", "show"]).arg(self.cgroup.path());
        let text = shell::run(&mut command, "").expect("bpftool cgroup show");
        let attached: Value = serde_json::from_str(&text).expect("bpftool's JSON");
        attached.as_array().into_iter().flatten().filter_map(|program| program["id"].as_u64()).collect()
    }

    /// Whether the agent's snapshot on disk names `word`; not the next one, which is being written beside it.
    pub fn has_on_disk(&self, word: &str) -> bool {
        let mut command = Command::new("grep");
        command.args(["-q", "-a", word]).arg(self.work.join("state/snapshot"));
        shell::run(&mut command, "").is_ok()
    }

    /// How often the programs decided `verdict`, read from the pinned map: also while no agent runs.
    #[track_caller]
    pub fn verdict(&self, verdict: Verdict) -> u64 {
        pins::verdict(&self.bpffs(), verdict).unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Since when the kernel knows that the agent is going, nanoseconds of [`crate::clock::monotonic_ns`].
    #[track_caller]
    pub fn going_since(&self) -> u64 {
        pins::going_since(&self.bpffs()).unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Waits until the agent has ended by itself or by a signal.
    #[track_caller]
    pub fn wait_agent(&self) {
        if let Some(agent) = self.agent().as_mut() {
            agent.wait(Duration::from_secs(15));
        }
    }

    /// Connections that `LOAD` counts as live, over the first `endpoints` endpoint ids.
    #[track_caller]
    pub fn live(&self, endpoints: u32) -> u64 {
        pins::live(&self.bpffs(), endpoints).unwrap_or_else(|error| panic!("{}: {error:#}", self.name))
    }

    /// Logs and maps, for a failure's report.
    pub fn report(&self) -> String {
        let mut text = format!("---- agent of {}\n{}\n---- verdicts", self.name, tail(&self.log(), 60));
        for verdict in Verdict::ALL {
            match pins::verdict(&self.bpffs(), verdict) {
                Ok(0) | Err(_) => {}
                Ok(count) => text.extend([" ", verdict.name(), " ", &count.to_string()]),
            }
        }
        let pins = shell::run(Command::new("find").arg(self.bpffs()).args(["-type", "f"]), "");
        for pin in pins.unwrap_or_default().lines() {
            if let Some(dump) = dump_map(Path::new(pin)) {
                text.extend(["\n---- ", pin, "\n", &tail(&dump, 30)]);
            }
        }
        text
    }

    fn agent(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pinned map's content, for the maps that are small and tell much.
fn dump_map(pin: &Path) -> Option<String> {
    let name = pin.file_name()?.to_str()?;
    let telling = [maps::ENROLLED, maps::SERVICES, maps::WORKLOADS, maps::EPOCH];
    if !telling.iter().any(|map| map.name == name) {
        return None;
    }
    shell::run(Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin), "").ok()
}

/// The last `lines` of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
