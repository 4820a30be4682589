//! Which store `mesh-control serve` uses, as flags say it, and its opening.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use mesh_api::name::is_subdomain;
use mesh_registry::store::{Store, StoreError};

use super::{EtcdOptions, EtcdStore, Options, RedbStore, Timings};
use crate::config::Serve;
use crate::replicas::Replicas;

/// Where intent and registrations are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// A file in the data directory
    #[default]
    Redb,
    /// An etcd, for several replicas
    Etcd,
}

/// Flags of the store.
#[derive(Args, Clone, Debug, Default)]
pub struct StoreArgs {
    /// Where the mesh is kept: in the data directory, or in etcd, where several replicas share it
    #[arg(long, env = "NODEMESH_STORE", value_enum, default_value = "redb")]
    pub store: Backend,
    /// URL of each member of etcd
    #[arg(long, env = "NODEMESH_ETCD_ENDPOINTS", value_name = "URL,…", value_delimiter = ',')]
    pub etcd_endpoints: Vec<String>,
    /// Whom to believe to be etcd, PEM; needed for https
    #[arg(long, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// What etcd is shown, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_key", requires = "etcd_ca")]
    pub etcd_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", requires = "etcd_password_file")]
    pub etcd_user: Option<String>,
    /// File with the user's password
    #[arg(long, value_name = "FILE", requires = "etcd_user")]
    pub etcd_password_file: Option<PathBuf>,
    /// What every key in etcd begins with: one etcd may serve several meshes
    #[arg(long, value_name = "PREFIX", default_value = "/nodemesh")]
    pub etcd_prefix: String,
    /// Leave etcd's history alone; otherwise the leading replica has it forget what is older than five minutes
    #[arg(long)]
    pub etcd_keep_history: bool,
    /// Name of this replica among those of one etcd; absent: the host's name
    #[arg(long, env = "NODEMESH_REPLICA", value_name = "NAME")]
    pub replica: Option<String>,
    /// Zone of this replica: agents are told, and prefer one of their own
    #[arg(long, env = "NODEMESH_ZONE", default_value = "", hide_default_value = true)]
    pub zone: String,
    /// The secret that replicas share, made by the first of them; absent: replica.secret in the data directory
    #[arg(long, value_name = "FILE")]
    pub ca_secret: Option<PathBuf>,
}

/// An open store, and who else serves it.
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How long its commits took.
    pub timings: Box<dyn Fn() -> Timings + Send + Sync>,
    /// This replica and the others.
    pub replicas: Arc<Replicas>,
}

impl Opened {
    /// As the flags say. Blocks.
    pub fn open(config: &Serve, hostname: Option<String>) -> Result<Self, StoreError> {
        let options = Options { durable: !config.no_fsync, ..Options::default() };
        match config.store.store {
            Backend::Redb => {
                config.store.alone()?;
                let store = Arc::new(RedbStore::open(&config.data, options)?);
                let weak = Arc::downgrade(&store);
                let timings = move || weak.upgrade().map(|store| store.timings()).unwrap_or_default();
                Ok(Self { store, timings: Box::new(timings), replicas: Replicas::alone() })
            }
            Backend::Etcd => {
                let name = config.store.name(hostname)?;
                let store = Arc::new(EtcdStore::open(&config.store.options()?, &name)?);
                let (weak, replicas) = (Arc::downgrade(&store), store.replicas());
                let timings = move || weak.upgrade().map(|store| store.timings()).unwrap_or_default();
                Ok(Self { store, timings: Box::new(timings), replicas })
            }
        }
    }
}

fn flags(cause: impl Into<String>) -> StoreError {
    StoreError::Failed { operation: "open as the flags say", cause: cause.into() }
}

impl StoreArgs {
    /// Refuses flags of etcd where it is not used: somebody means it to be.
    fn alone(&self) -> Result<(), StoreError> {
        if self.etcd_endpoints.is_empty() && self.etcd_user.is_none() && self.replica.is_none() {
            return Ok(());
        }
        Err(flags(
            "--etcd-endpoints, --etcd-user and --replica are for several replicas; give --store etcd as well",
        ))
    }

    fn name(&self, hostname: Option<String>) -> Result<String, StoreError> {
        let name = self.replica.clone().or(hostname).unwrap_or_default().to_ascii_lowercase();
        if is_subdomain(&name) {
            return Ok(name);
        }
        Err(flags(format!(
            "{name:?} is no name of a replica; give --replica a DNS name that no other replica has"
        )))
    }

    fn options(&self) -> Result<EtcdOptions, StoreError> {
        let user = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(name), Some(file)) => {
                let password = std::fs::read_to_string(file)
                    .map_err(|error| flags(format!("--etcd-password-file {}: {error}", file.display())))?;
                Some((name.clone(), password.trim_end_matches('\n').to_owned()))
            }
            _ => None,
        };
        if !self.etcd_prefix.starts_with('/') || self.etcd_prefix.trim_end_matches('/').is_empty() {
            return Err(flags(format!(
                "--etcd-prefix {:?} does not begin with / and a name",
                self.etcd_prefix
            )));
        }
        Ok(EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            ca: self.etcd_ca.clone(),
            cert: self.etcd_cert.clone(),
            key: self.etcd_key.clone(),
            user,
            prefix: self.etcd_prefix.clone(),
            keeps_history: self.etcd_keep_history,
        })
    }
}
