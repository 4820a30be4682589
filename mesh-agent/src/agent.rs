//! The daemon from start to end: what is started in which order, and what a signal does.
//!
//! Everything that can fail for a reason outside the kernel (ports, files, tokens, another agent) is tried
//! before a program is attached: a start that fails leaves nothing attached.
//!
//! Two kinds of threads: the proxy's workers, and the runtime here (configuration, session, admin, metrics),
//! so that a full queue of one never delays the other.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use mesh_api::local::SOCKET;
use mesh_core::locality::Locality;
use mesh_core::snapshot::Snapshot;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::log::LogFilter;
use crate::admin::socket::Listener;
use crate::admin::{self, Admin};
use crate::args::{CleanupArgs, RunArgs};
use crate::carriage::Carriage;
use crate::config::connect::ControlPlane;
use crate::config::{self, xds};
use crate::enrol::{Enrolments, Settings, datapath};
use crate::external::{ExternalStats, Lookups};
use crate::handover::{self, Leaving, Predecessor};
use crate::health::{self, Health};
use crate::identity::Identities;
use crate::identity::keep::{self, Keep};
use crate::identity::member::Member;
use crate::identity::renew::Renewal;
use crate::kernel::{self, Kernel, LoadOptions};
use crate::path::{Budget, Limits, Proxy};
use crate::telemetry::{self, ended::Ended, open::Open};
use crate::{authorise, cgroups, session};

/// Most workers that are started unasked.
const WORKERS_MAX: usize = 16;
/// How long the start waits for a first configuration.
const FIRST_CONFIGURATION: Duration = Duration::from_secs(3);
/// How long a hand-over waits for the certificates of the node's workloads.
const FIRST_CERTIFICATES: Duration = Duration::from_secs(3);
/// How long a blocking call of a task may hold up a hand-over.
const TASKS_END: Duration = Duration::from_secs(5);
/// Threads for everything but requests.
const CONTROL_THREADS: usize = 2;

/// Runs until a signal ends it.
pub fn run(args: RunArgs, log: LogFilter) -> anyhow::Result<()> {
    if !args.core_dumps {
        // A dump would hold keys, and the listeners for as long as it takes to write.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    }
    raise_descriptor_limit();
    crate::sys::limit_allocator();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()?;
    let Some(leaving) = runtime.block_on(serve(args, log))? else { return Ok(()) };
    // With the runtime everything ends that could still write a map, a file or to the control plane. The
    // proxy's workers are threads of their own.
    runtime.shutdown_timeout(TASKS_END);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(handover::leave(leaving))
}

/// What was checked and taken before the kernel is touched.
struct Prepared {
    predecessor: Option<Predecessor>,
    control: ControlPlane,
    member: Arc<Member>,
    metrics: TcpListener,
    socket: Listener,
    cgroup_root: PathBuf,
}

async fn prepare(args: &RunArgs) -> anyhow::Result<Prepared> {
    if let Some(path) = &args.commands {
        health::commands::read(path).map_err(anyhow::Error::msg).context("--commands")?;
    }
    let member = Member::open(&args.node, &args.join_token_file, &args.state_dir)?;
    let control = ControlPlane::new(&args.control, &args.zone, member.clone())?;
    let cgroup_root = match &args.cgroup_root {
        Some(path) => path.clone(),
        None => cgroups::mount_point()?,
    };
    cgroups::check_own(&cgroup_root)?;
    for directory in [&args.run_dir, &args.state_dir] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("{}: cannot be made", directory.display()))?;
    }
    let path = args.run_dir.join(SOCKET);
    let mut taken = None;
    if args.take_over {
        // Before the other one stops: what can't run here must not end what does.
        kernel::verify()?;
        let asked = handover::ask(&path).await;
        taken = asked.with_context(|| format!("the agent behind {}", path.display()))?;
    }
    let (predecessor, metrics) = taken.unzip();
    let socket = Listener::bind(&path).with_context(|| format!("{}: cannot listen", path.display()))?;
    let metrics = metrics.map_or_else(|| TcpListener::bind(args.metrics), Ok).with_context(|| {
        format!("{}: cannot listen for /metrics: free the port or give --metrics another", args.metrics)
    })?;
    metrics.set_nonblocking(true)?;
    Ok(Prepared { predecessor, control, member, metrics, socket, cgroup_root })
}

/// Serves until a signal, or until another agent wants to take over: then what is left to do.
async fn serve(args: RunArgs, log: LogFilter) -> anyhow::Result<Option<Leaving>> {
    let Prepared { predecessor, control, member, metrics, socket, cgroup_root } = prepare(&args).await?;
    // Asked for before anything is attached, so that no signal is missed.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let kernel = Arc::new(Kernel::load(&load_options(&args, &cgroup_root))?);
    tokio::spawn(kernel::watch_homes(kernel.clone()));
    let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let options = config::Options {
        node: args.node.clone(),
        locality: locality(&args),
        state_dir: args.state_dir.clone(),
    };
    let config = config::start(options, kernel.clone(), snapshot.clone());
    let workers = args.workers.map_or_else(default_workers, usize::from);
    let keep = Keep::open(&args.bpffs, &args.run_dir).unwrap_or_else(|error| {
        tracing::error!(%error, "keys are not kept for the next agent: it needs the control plane for new ones");
        Keep::default()
    });
    let identities = Identities::new(member, keep);
    let keys = Arc::new(identities.clone());
    let proxy = Proxy::start(workers, snapshot, kernel.clone(), keys, Limits::default())?;
    let lines = args.access_log();
    proxy
        .access_log()
        .to(lines.clone())
        .with_context(|| format!("the access log cannot be written: {lines:?}"))?;

    let (session, session_handle, verdicts) =
        session::new(control.clone(), args.node.clone(), config.clone());
    let carriage =
        Arc::new(Carriage::new(kernel.clone(), proxy.clone(), config.clone(), args.budget_pending));
    let data = datapath::Live {
        kernel: kernel.clone(),
        proxy: proxy.clone(),
        budget: Budget { connections: args.budget_connections, ..Budget::default() },
        pending: args.budget_pending,
        shared: parking_lot::Mutex::default(),
        transport: carriage.clone(),
    };
    let enrolments =
        Enrolments::new(settings(&args, cgroup_root), Box::new(data), config.clone(), session_handle.clone());
    let (restored, is_restored) = tokio::sync::oneshot::channel();
    tokio::spawn(session.run(is_restored));
    let xds = Arc::new(xds::XdsStats::default());
    let renewal = Renewal {
        control: control.clone(),
        node: args.node.clone(),
        identities: identities.clone(),
        trust: config.trust(),
        accounts: enrolments.accounts(),
        conditions: config.shared_conditions(),
    };
    tokio::spawn(renewal.run());
    let client = xds::Client { control, node: args.node.clone(), config: config.clone(), stats: xds.clone() };
    tokio::spawn(client.run());
    let lookups = Lookups::new(config.clone(), args.resolv_conf.clone(), &args.state_dir).await;
    let external = lookups.stats();
    tokio::spawn(lookups.follow());
    first_configuration(&config).await;
    enrolments.restore().await;
    config.begin().await;
    drop(restored);

    tokio::spawn(enrolments.clone().follow(verdicts));
    tokio::spawn(carriage.follow());
    let checks = Arc::new(health::Stats::default());
    let health = Health {
        kernel: kernel.clone(),
        proxy: proxy.clone(),
        config: config.clone(),
        enrolments: enrolments.clone(),
        session: session_handle,
        commands: args.commands.clone(),
        stats: checks.clone(),
    };
    tokio::spawn(health.follow());
    let (successors, mut successor) = mpsc::channel(1);
    let running = Running {
        kernel,
        proxy: proxy.clone(),
        config: config.clone(),
        xds,
        enrolments,
        identities,
        external,
        checks,
        took_over: predecessor.is_some(),
    };
    let passed_on = metrics.try_clone()?;
    let ready = running.show(&args.node, log, successors, socket, metrics)?;
    if let Some(predecessor) = predecessor {
        // It serves meanwhile.
        if tokio::time::timeout(FIRST_CERTIFICATES, running.identities.complete()).await.is_err() {
            tracing::warn!("taking over without all certificates: they come when the control plane answers");
        }
        predecessor.release().await;
    }
    let adopted = running.kernel.adopted();
    tracing::info!(node = args.node, workers, adopted, "mesh-agent serves");

    let drain = Duration::from_secs(args.drain_seconds);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        Some(successor) = successor.recv() => {
            config.save().await;
            return Ok(Some(Leaving { successor, metrics: passed_on, proxy, drain }));
        }
    }
    tracing::info!(
        "ending: new connections go on without the agent, those that are open for up to {} s",
        args.drain_seconds
    );
    ready.end();
    proxy.retire().await;
    proxy.drain(drain).await;
    config.save().await;
    Ok(None)
}

fn load_options(args: &RunArgs, cgroup_root: &Path) -> LoadOptions {
    LoadOptions {
        bpffs: args.bpffs.clone(),
        cgroup: cgroup_root.to_owned(),
        sizes: args.sizes.list(),
        telemetry: args.flows.telemetry(),
        udp_idle: Duration::from_secs(args.udp_idle_seconds),
    }
}

fn settings(args: &RunArgs, cgroup_root: PathBuf) -> Settings {
    Settings {
        node: args.node.clone(),
        locality: locality(args),
        workload_cgroup: args.workload_cgroup.clone().unwrap_or_else(|| cgroup_root.join("nodemesh")),
        cgroup_root,
        state_dir: args.state_dir.clone(),
        dns: !args.no_dns,
    }
}

fn locality(args: &RunArgs) -> Locality {
    Locality { region: args.region.clone(), zone: args.zone.clone() }
}

/// What serves, for those who look at it.
struct Running {
    kernel: Arc<Kernel>,
    proxy: Proxy,
    config: config::Handle,
    xds: Arc<xds::XdsStats>,
    enrolments: Enrolments,
    identities: Identities,
    /// From an agent that may serve still.
    took_over: bool,
    external: Arc<ExternalStats>,
    checks: Arc<health::Stats>,
}

impl Running {
    /// Starts `agent.sock`, `/metrics`, and what follows policies: to be called when workloads are served.
    fn show(
        &self,
        node: &str,
        log: LogFilter,
        successors: mpsc::Sender<OwnedFd>,
        socket: Listener,
        metrics: TcpListener,
    ) -> anyhow::Result<telemetry::Readiness> {
        let Self { kernel, proxy, config, xds, enrolments, identities, external, checks, took_over } = self;
        let ended = Arc::new(Ended::new(kernel.flow_telemetry().by_endpoint));
        let open = Arc::new(Open::new(kernel.clone(), config.clone()));
        let admin = Admin {
            successors,
            node: node.to_owned(),
            enrolments: enrolments.clone(),
            identities: identities.clone(),
            config: config.clone(),
            xds: xds.clone(),
            log,
            kernel: kernel.clone(),
            proxy: proxy.clone(),
            ended: ended.clone(),
            open: open.clone(),
            flow_readers: admin::flow_readers(),
        };
        tokio::spawn(admin.serve(socket));
        let revoked = authorise::start(kernel.clone(), proxy.clone(), config.clone(), *took_over);
        let sources = telemetry::Sources {
            kernel: kernel.clone(),
            ended,
            open,
            proxy: proxy.clone(),
            config: config.clone(),
            xds: xds.clone(),
            revoked,
            identities: identities.clone(),
            external: external.clone(),
            checks: checks.clone(),
        };
        telemetry::start(sources, metrics).context("telemetry")
    }
}

/// Waits for something to serve: an agent without a snapshot on disk that takes its listeners at once would
/// refuse what the kernel path still carries. Not for ever: the control plane may be away.
async fn first_configuration(config: &config::Handle) {
    let served = async {
        while !config.served() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(FIRST_CONFIGURATION, served).await.is_err() {
        tracing::warn!("no configuration on disk, and none from the control plane yet: serving without");
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX)
}

/// As many descriptors as may be had: two a proxied connection.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
    }
}

/// Detaches everything and removes what an agent left on this node.
pub fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    let socket = args.run_dir.join(SOCKET);
    if is_served(&socket) {
        bail!("an agent serves {}: stop it first", socket.display());
    }
    let pins = kernel::cleanup(&args.bpffs)
        .with_context(|| format!("{}: cannot be cleaned", args.bpffs.display()))?;
    let mut files = usize::from(
        keep::cleanup(&args.run_dir)
            .with_context(|| format!("{}: the seal cannot be removed", args.run_dir.display()))?,
    );
    for path in [socket, args.state_dir.clone()] {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Ok(()) => files += 1,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("{}: cannot be removed", path.display())),
        }
    }
    let _ = std::fs::remove_dir(&args.run_dir);
    println!("removed {pins} pins under {} and {files} of the agent's files", args.bpffs.display());
    Ok(())
}

fn is_served(socket: &Path) -> bool {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket as make};
    let Ok(address) = SocketAddrUnix::new(socket) else { return false };
    make(AddressFamily::UNIX, SocketType::SEQPACKET, None)
        .is_ok_and(|probe| connect(&probe, &address).is_ok())
}
