//! Puts the control plane together, and takes it down again.
//!
//! data directory → store → authority → engine → office → admin token → ports. Nothing listens before the store has
//! been read, so no agent sees less than what was there before a restart.
//!
//! Invariant: whatever fails at start is one [`StartError`] that ends in a remedy.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_registry::intent::WriteError;
use mesh_registry::store::{Store, StoreError};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit::Audit;
use crate::auth::Role;
use crate::auth::token::{Minted, TokenRecord};
use crate::ca::CaError;
use crate::ca::authority::Authority;
use crate::ca::names::server_names;
use crate::ca::office::{Office, OfficeError};
use crate::ca::shared::{Shared, SharedError};
use crate::ca::verify::Clients;
use crate::clock::{unix_ms, unix_s};
use crate::config::Serve;
use crate::engine::Engine;
use crate::jwks::keeper::Keeper;
use crate::replicas::Replicas;
use crate::rest::Site;
use crate::stop::stopped;
use crate::store::Opened;
use crate::tls::{self, ServerCert};
use crate::{agents, envoy, files, rest};

/// How often the authority looks whether something is due.
const TICK: Duration = Duration::from_secs(1);
/// How long a stop may take.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Why the control plane does not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Flags that contradict each other.
    #[error("{0}")]
    Flags(String),
    /// The data directory.
    #[error("cannot use the data directory {}: {cause}; give --data a directory that this user may write", path.display())]
    Data {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The authority of several replicas.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// The authority's beginning.
    #[error(transparent)]
    Office(#[from] OfficeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first writes.
    #[error("cannot write the first objects: {0}; check the disk of the data directory")]
    First(#[from] WriteError),
    /// No randomness.
    #[error("the system gives no random numbers; check getrandom(2)")]
    Random,
    /// A port.
    #[error(
        "cannot listen on {address} ({flag}): {cause}; stop what uses the port, or give {flag} another address"
    )]
    Port {
        /// Which flag.
        flag: &'static str,
        /// Which address.
        address: SocketAddr,
        /// The system's answer.
        cause: io::Error,
    },
    /// TLS.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A running control plane.
pub struct Running {
    /// Where the REST API listens.
    pub api: SocketAddr,
    /// Where agents are served.
    pub agents: SocketAddr,
    /// Where Envoys are served, if they are.
    pub envoys: Option<SocketAddr>,
    /// Its state, for tests.
    pub engine: Arc<Engine>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Starts with the store that the flags name.
pub async fn start(config: &Serve) -> Result<Running, StartError> {
    prepare(&config.data)?;
    // Before the store: a wrong name should not leave half a mesh behind.
    server_names(&config.name, None)?;
    config.times().map_err(StartError::Flags)?;
    if config.no_fsync {
        tracing::warn!("--no-fsync: a crash loses acknowledged writes");
    }
    let opened = Opened::open(config, hostname())?;
    start_with(config, opened).await
}

/// Starts with any store.
pub async fn start_with(config: &Serve, opened: Opened) -> Result<Running, StartError> {
    let Opened { store, timings, replicas } = opened;
    let times = config.times().map_err(StartError::Flags)?;
    let (authority, shared) = authority(config, &store, &replicas)?;
    let names = server_names(&known_as(config), hostname())?;
    let cert = ServerCert::new(authority.live().server_certificate(&names, unix_s())?);
    let clients = Clients::new(&authority.live().roots, Vec::new())?;
    let given = config.tls();
    let rest_cert = match &given {
        Some(files) => ServerCert::new(files.read().map_err(StartError::Flags)?),
        None => cert.clone(),
    };
    let rest_tls = tls::acceptor(rest_cert.clone(), None, &[b"http/1.1"])?;
    let agents_tls = tls::acceptor(cert.clone(), Some(clients.clone()), &[b"h2"])?;
    let envoys_tls = agents_tls.clone();

    let engine = Engine::start(store, times, replicas.clone())?;
    engine.ensure_mesh().await?;
    ensure_admin(&engine, &config.data).await?;
    let office = Office::open(engine.clone(), (authority, shared), names, (cert, clients), unix_s())?;

    let keeper = Keeper::open(engine.clone(), config.jwks())?;

    let (rest_port, api) = listen("--api", config.api).await?;
    let (agents_port, agents) = listen("--agents", config.agents).await?;
    let envoys_port = match config.envoys {
        Some(address) => Some(listen("--envoys", address).await?),
        None => None,
    };
    describe(config, &replicas, api, agents);
    let (stop, stopped) = watch::channel(false);
    let site = Arc::new(Site {
        engine: engine.clone(),
        office: office.clone(),
        timings,
        audit: Audit::new(&config.data),
        attempts: Mutex::default(),
        slots: Arc::default(),
        stop: stopped.clone(),
    });
    let rest_connections = tls::accept(rest_port, rest_tls, stopped.clone());
    let agent_connections = tls::accept(agents_port, agents_tls, stopped.clone());
    let agents_task = {
        let (engine, office, stopped) = (engine.clone(), office.clone(), stopped.clone());
        async move {
            if let Err(error) = agents::serve(engine, office, agent_connections, stopped).await {
                tracing::error!(%error, "the agents' port failed");
            }
        }
    };
    let mut tasks = vec![
        tokio::spawn(rest::serve(site, rest_connections, stopped.clone())),
        tokio::spawn(agents_task),
        tokio::spawn(keep(office, stopped.clone())),
        tokio::spawn(keeper.run(stopped.clone())),
    ];
    let envoys = envoys_port.as_ref().map(|(_, address)| *address);
    if let Some((port, address)) = envoys_port {
        tracing::info!(%address, "Envoys are served");
        let connections = tls::accept(port, envoys_tls, stopped.clone());
        let (engine, stopped) = (engine.clone(), stopped.clone());
        tasks.push(tokio::spawn(async move {
            if let Err(error) = envoy::port::serve(engine, connections, stopped).await {
                tracing::error!(%error, "the Envoys' port failed");
            }
        }));
    }
    if let Some(files) = given {
        tasks.push(tokio::spawn(files.follow(rest_cert, stopped.clone())));
    }
    if let Some(directory) = config.files.clone() {
        tasks.push(tokio::spawn(files::follow(engine.clone(), directory, stopped)));
    }
    tracing::info!(%api, %agents, store = engine.store_id(), revision = engine.hub.revision(), "mesh-control is up");
    Ok(Running { api, agents, envoys, engine, stop, tasks })
}

/// The authority of this replica, and what it has to do with the others'.
fn authority(
    config: &Serve,
    store: &Arc<dyn Store>,
    replicas: &Replicas,
) -> Result<(Authority, Option<Shared>), StartError> {
    let lives = config.lives().map_err(StartError::Flags)?;
    let given = config.given();
    if given.is_some() || !replicas.shared() {
        return Ok((Authority::open(&config.data, given.as_ref(), lives, unix_s())?, None));
    }
    let (secret, me) = (config.store.ca_secret.as_deref(), replicas.name());
    let (authority, shared) = Shared::open(&config.data, secret, store.clone(), me, lives, unix_s())?;
    Ok((authority, Some(shared)))
}

/// What the others are told of this replica.
fn describe(config: &Serve, replicas: &Replicas, api: SocketAddr, agents: SocketAddr) {
    let at = |bound: SocketAddr| match config.name.first() {
        Some(name) if name.contains(':') => format!("[{name}]:{}", bound.port()),
        Some(name) => format!("{name}:{}", bound.port()),
        None => bound.to_string(),
    };
    replicas.describe(|about| {
        (about.api, about.agents) = (at(api), at(agents));
        about.zone.clone_from(&config.store.zone);
        env!("CARGO_PKG_VERSION").clone_into(&mut about.version);
    });
}

impl Running {
    /// Stops taking connections, ends streams, lets requests under way finish.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.engine.replicas.leave().await;
        let ended = async {
            for task in self.tasks {
                // A task that panicked has ended too.
                let _ = task.await;
            }
        };
        if tokio::time::timeout(STOP_TIME, ended).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
    }
}

async fn listen(flag: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |cause| StartError::Port { flag, address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Has the office do what is due.
async fn keep(office: Arc<Office>, mut stop: watch::Receiver<bool>) {
    let mut failed = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = stopped(&mut stop) => return,
        }
        let office = office.clone();
        let done = tokio::task::spawn_blocking(move || office.tick(unix_s())).await;
        match done.map_err(|error| error.to_string()).and_then(|done| done.map_err(|error| error.to_string()))
        {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                tracing::error!(error, "the authority cannot do what is due; trying again each second");
                failed = true;
            }
            Err(_) => {}
        }
    }
}

/// Makes the directory, and finds out now whether it can be written.
fn prepare(dir: &Path) -> Result<(), StartError> {
    let failed = |cause| StartError::Data { path: dir.to_owned(), cause };
    if !dir.exists() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
    }
    if !dir.is_dir() {
        return Err(failed(ErrorKind::NotADirectory.into()));
    }
    let probe = dir.join(".writable");
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(failed)
}

/// Makes the first admin token where the store knows none. The file comes first: a crash between the two
/// leaves a file that is written again, not a mesh that nobody can enter.
async fn ensure_admin(engine: &Arc<Engine>, dir: &Path) -> Result<(), StartError> {
    if engine.has_admin() {
        return Ok(());
    }
    let minted = Minted::new().map_err(|_| StartError::Random)?;
    let path = dir.join("admin.token");
    let failed = |cause| StartError::Data { path: path.clone(), cause };
    let fresh = dir.join("admin.token.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
    writeln!(file, "{}", minted.api_text()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&fresh, &path).map_err(failed)?;
    let record = TokenRecord {
        id: minted.id,
        name: "first".to_owned(),
        hash: minted.hash,
        role: Role::Admin,
        node: String::new(),
        grants: Vec::new(),
        created_ms: unix_ms(),
        expires_ms: None,
        single_use: false,
        used_ms: None,
    };
    engine.add_token(record).await?;
    tracing::info!(path = %path.display(), "admin token made");
    Ok(())
}

/// The names that were given, and the addresses that the ports are bound to.
fn known_as(config: &Serve) -> Vec<String> {
    let ports = [Some(config.api), Some(config.agents), config.envoys];
    let bound = ports.into_iter().flatten().map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    config.name.iter().cloned().chain(bound.map(|ip| ip.to_string())).collect()
}

fn hostname() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}
