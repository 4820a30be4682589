//! What may be said on the command line; every flag of `run` also as `NODEMESH_*` in the environment.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_common::maps;
use mesh_common::record::telemetry;

use crate::kernel::FlowTelemetry;
use crate::path::see::log::Target;

/// The node daemon of Nodemesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the programs and serve this node's workloads.
    Run(Box<RunArgs>),
    /// Detach every program and remove every trace of an agent that ran here.
    Cleanup(CleanupArgs),
    /// Print the documentation of all metrics, as Markdown.
    MetricsDoc,
}

/// Flags of `run`.
// Switches of a command line are bools.
#[allow(clippy::struct_excessive_bools)]
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Name of this node: the one that the join token was made for.
    #[arg(long, env = "NODEMESH_NODE")]
    pub node: String,
    /// Region that this node, and its workloads with it, is in; see `locality` of a TrafficPolicy.
    #[arg(long, env = "NODEMESH_REGION", default_value = "", hide_default_value = true, value_parser = place)]
    pub region: String,
    /// Zone that this node is in, within its region.
    #[arg(long, env = "NODEMESH_ZONE", default_value = "", hide_default_value = true, value_parser = place)]
    pub zone: String,
    /// The control plane: each of its replicas, with the zone that it is in; the node's own zone is preferred.
    #[arg(long, env = "NODEMESH_CONTROL", value_name = "https://HOST:15012[@ZONE],…")]
    pub control: String,
    /// File with the join token (`meshctl token create --node …`).
    #[arg(long, env = "NODEMESH_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: PathBuf,
    /// Where `agent.sock` is.
    #[arg(long, env = "NODEMESH_RUN_DIR", default_value = "/run/nodemesh")]
    pub run_dir: PathBuf,
    /// Where the last good configuration is kept.
    #[arg(long, env = "NODEMESH_STATE_DIR", default_value = "/var/lib/nodemesh")]
    pub state_dir: PathBuf,
    /// The cgroup2 directory whose processes are seen; found by itself where cgroup2 is mounted.
    #[arg(long, env = "NODEMESH_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// Below which cgroups for `meshctl run` are made; default: `nodemesh` in the cgroup root.
    #[arg(long, env = "NODEMESH_WORKLOAD_CGROUP")]
    pub workload_cgroup: Option<PathBuf>,
    /// Where programs and maps are pinned; mounted if it is not in a bpffs.
    #[arg(long, env = "NODEMESH_BPFFS", default_value = "/sys/fs/bpf/nodemesh")]
    pub bpffs: PathBuf,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "NODEMESH_METRICS", default_value = "0.0.0.0:15090")]
    pub metrics: SocketAddr,
    /// Proxy threads; default: one a CPU, at most 16.
    #[arg(long, env = "NODEMESH_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Log filter: a level, or `target=level,…`.
    #[arg(long, env = "NODEMESH_LOG", default_value = "info")]
    pub log: String,
    /// Log JSON lines.
    #[arg(long, env = "NODEMESH_LOG_JSON")]
    pub log_json: bool,
    /// Where the access log goes, where a TransportPolicy asks for one: `-`, standard output, or a file, which is begun
    /// anew when it was moved away.
    #[arg(long, env = "NODEMESH_ACCESS_LOG", default_value = "-", value_name = "-|FILE")]
    pub access_log: PathBuf,
    /// How long connections may go on after SIGTERM, seconds.
    #[arg(long, env = "NODEMESH_DRAIN_SECONDS", default_value_t = 10)]
    pub drain_seconds: u64,
    /// Take over from the agent that runs on this node: connections go on, and none is refused. Without it a
    /// second agent is an error. Where none runs this is a plain start.
    #[arg(long, env = "NODEMESH_TAKE_OVER")]
    pub take_over: bool,
    /// Let the kernel write core dumps of the agent: they hold keys, and delay the noticing of a crash.
    #[arg(long, env = "NODEMESH_CORE_DUMPS")]
    pub core_dumps: bool,
    /// Captured connections that one workload may have at once.
    #[arg(long, env = "NODEMESH_BUDGET_CONNECTIONS", default_value_t = crate::path::Budget::default().connections)]
    pub budget_connections: u32,
    /// Captured connections of one workload that may wait for the proxy.
    #[arg(long, env = "NODEMESH_BUDGET_PENDING", default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub budget_pending: u16,
    /// What is noted of flows.
    #[command(flatten)]
    pub flows: FlowArgs,
    /// How long a UDP socket that is not connected may neither send to nor hear from a service and keep its
    /// endpoint, seconds.
    #[arg(long, env = "NODEMESH_UDP_IDLE_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub udp_idle_seconds: u64,
    /// Leave the workloads' questions to resolvers alone: no names of the mesh.
    #[arg(long, env = "NODEMESH_NO_DNS")]
    pub no_dns: bool,
    /// Whom the agent itself asks, for the host names of external services.
    #[arg(long, env = "NODEMESH_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Commands of this node that services may name, for health checks and restarts; see docs/health.md.
    #[arg(long, env = "NODEMESH_COMMANDS", value_name = "FILE")]
    pub commands: Option<PathBuf>,
    /// Sizes of maps, used when they are made; a pinned map keeps its size until `mesh-agent cleanup`.
    #[command(flatten)]
    pub sizes: MapSizes,
}

impl RunArgs {
    /// Where the access log goes.
    pub fn access_log(&self) -> Target {
        if self.access_log.as_os_str() == "-" {
            Target::Stdout
        } else {
            Target::File(self.access_log.clone())
        }
    }
}

/// What is noted of flows.
#[derive(Args, Debug)]
pub struct FlowArgs {
    /// What the kernel notes of flows: `none` and `totals` (no record of ended flows, so no durations and no
    /// `meshctl flows -f`) are for measuring what noting costs.
    #[arg(long, env = "NODEMESH_FLOW_TELEMETRY", default_value = "full")]
    pub flow_telemetry: FlowLevel,
    /// Count flows by endpoint as well: label `endpoint`. A counter an endpoint and client, in the room of
    /// --map-flow-totals.
    #[arg(long, env = "NODEMESH_FLOW_ENDPOINTS")]
    pub flow_endpoints: bool,
}

/// How much is noted of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowLevel {
    /// Nothing.
    None,
    /// Exact totals.
    Totals,
    /// Totals, and a record of each flow that ends.
    Full,
}

impl FlowArgs {
    /// For the loader.
    pub fn telemetry(&self) -> FlowTelemetry {
        let level = match self.flow_telemetry {
            FlowLevel::None => telemetry::NONE,
            FlowLevel::Totals => telemetry::TOTALS,
            FlowLevel::Full => telemetry::FULL,
        };
        FlowTelemetry { level, by_endpoint: self.flow_endpoints }
    }
}

/// A region or zone.
fn place(text: &str) -> Result<String, String> {
    let form = mesh_api::name::LABEL_VALUE;
    if (form.holds)(text) { Ok(text.to_owned()) } else { Err(format!("it is not {}", form.accepted)) }
}

/// Bytes of a ring: a power of two of at least a page.
fn ring(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|_| "it is no number of bytes".to_owned())?;
    let accepted = bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes);
    if accepted { Ok(bytes) } else { Err("it is not a power of two from 4096 to 1073741824".to_owned()) }
}

/// Sizes of maps.
#[derive(Args, Debug)]
pub struct MapSizes {
    /// Virtual addresses and ports.
    #[arg(long, default_value_t = maps::SERVICES.capacity, env = "NODEMESH_MAP_SERVICES")]
    pub map_services: u32,
    /// Slots of balancing tables, and endpoints.
    #[arg(long, default_value_t = maps::ENDPOINTS.capacity, env = "NODEMESH_MAP_ENDPOINTS")]
    pub map_endpoints: u32,
    /// Addresses and ports of workloads.
    #[arg(long, default_value_t = maps::WORKLOADS.capacity, env = "NODEMESH_MAP_WORKLOADS")]
    pub map_workloads: u32,
    /// What policies say, by class of source, port and addresses.
    #[arg(long, default_value_t = maps::POLICY.capacity, env = "NODEMESH_MAP_POLICY")]
    pub map_policy: u32,
    /// Ranges of addresses that policies tell apart.
    #[arg(long, default_value_t = maps::POLICY_CIDRS.capacity, env = "NODEMESH_MAP_POLICY_CIDRS")]
    pub map_policy_cidrs: u32,
    /// Ports and interfaces that transport policies leave alone, by workload.
    #[arg(long, default_value_t = maps::EXCLUDE.capacity, env = "NODEMESH_MAP_EXCLUDE")]
    pub map_exclude: u32,
    /// Ranges of addresses that transport policies leave alone, by workload.
    #[arg(long, default_value_t = maps::EXCLUDE_CIDRS.capacity, env = "NODEMESH_MAP_EXCLUDE_CIDRS")]
    pub map_exclude_cidrs: u32,
    /// With whom workloads speak over UDP that have policies or take answers alone: whose answers are let in.
    #[arg(long, default_value_t = maps::UDP_ASKED.capacity, env = "NODEMESH_MAP_UDP_ASKED", value_parser = clap::value_parser!(u32).range(256..=1 << 24))]
    pub map_udp_asked: u32,
    /// Proofs of who sends datagrams to workloads of this node that have policies.
    #[arg(long, default_value_t = maps::UDP_SENDERS.capacity, env = "NODEMESH_MAP_UDP_SENDERS", value_parser = clap::value_parser!(u32).range(256..=1 << 24))]
    pub map_udp_senders: u32,
    /// Ends of connections of workloads that asked for splicing, two a connection.
    #[arg(long, default_value_t = maps::SPLICE.capacity, env = "NODEMESH_MAP_SPLICE")]
    pub map_splice: u32,
    /// Keys of flow totals.
    #[arg(long, default_value_t = maps::FLOW_TOTALS.capacity, env = "NODEMESH_MAP_FLOW_TOTALS")]
    pub map_flow_totals: u32,
    /// Bytes of the ring of ended flows: a power of two, and 104 a record.
    #[arg(long, default_value_t = maps::FLOW_EVENTS.capacity, env = "NODEMESH_MAP_FLOW_EVENTS", value_parser = ring)]
    pub map_flow_events: u32,
    /// Destinations and senders of UDP sockets that are not connected, two a socket and service.
    #[arg(long, default_value_t = maps::UDP_STICKY.capacity, env = "NODEMESH_MAP_UDP_STICKY", value_parser = clap::value_parser!(u32).range(256..=1 << 24))]
    pub map_udp_sticky: u32,
}

impl MapSizes {
    /// Numbers of service ports: an entry an address family each, as a rule.
    fn service_ids(&self) -> u32 {
        (self.map_services / 2 + 1).max(maps::SERVICE_LOAD.capacity)
    }

    /// For the loader.
    pub fn list(&self) -> Vec<(&'static str, u32)> {
        vec![
            (maps::SERVICES.name, self.map_services),
            (maps::SERVICE_LOAD.name, self.service_ids()),
            (maps::RULES.name, self.service_ids()),
            (maps::ENDPOINTS.name, self.map_endpoints),
            (maps::LOAD.name, self.map_endpoints),
            (maps::WORKLOADS.name, self.map_workloads),
            (maps::POLICY.name, self.map_policy),
            (maps::POLICY_CIDRS.name, self.map_policy_cidrs),
            (maps::EXCLUDE.name, self.map_exclude),
            (maps::EXCLUDE_CIDRS.name, self.map_exclude_cidrs),
            (maps::UDP_ASKED.name, self.map_udp_asked),
            (maps::UDP_SENDERS.name, self.map_udp_senders),
            (maps::SPLICE.name, self.map_splice),
            (maps::SPLICE_ENDS.name, self.map_splice),
            (maps::FLOW_TOTALS.name, self.map_flow_totals),
            (maps::TOTALS_HOMES.name, self.map_flow_totals.min(maps::TOTALS_HOMES.capacity)),
            (maps::FLOW_EVENTS.name, self.map_flow_events),
            (maps::UDP_STICKY.name, self.map_udp_sticky),
        ]
    }
}

/// Flags of `cleanup`.
#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// Where the agent pinned its programs and maps.
    #[arg(long, env = "NODEMESH_BPFFS", default_value = "/sys/fs/bpf/nodemesh")]
    pub bpffs: PathBuf,
    /// Where `agent.sock` was.
    #[arg(long, env = "NODEMESH_RUN_DIR", default_value = "/run/nodemesh")]
    pub run_dir: PathBuf,
    /// Where the last good configuration was kept.
    #[arg(long, env = "NODEMESH_STATE_DIR", default_value = "/var/lib/nodemesh")]
    pub state_dir: PathBuf,
}
