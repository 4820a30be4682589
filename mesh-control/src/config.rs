//! Command line of `mesh-control`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::ca::authority::{Given, Lives};
use crate::engine::Times;
use crate::jwks::keeper::Ways;
use crate::store::StoreArgs;
use crate::tls;

/// The control plane of a mesh.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serves the API and the agents until SIGTERM or Ctrl-C
    Serve(Serve),
}

/// Flags of `serve`.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Directory for the store, the authority and the admin token; made if it is not there
    #[arg(long, env = "NODEMESH_DATA", default_value = "/var/lib/nodemesh-control")]
    pub data: PathBuf,
    /// Address of the REST API
    #[arg(long, env = "NODEMESH_API", default_value = "0.0.0.0:15080")]
    pub api: SocketAddr,
    /// Address for agents
    #[arg(long, env = "NODEMESH_AGENTS", default_value = "0.0.0.0:15012")]
    pub agents: SocketAddr,
    /// Address for Envoys and clients of gRPC (xDS); without an address 0.0.0.0:15010. Absent: they are not served
    #[arg(long, env = "NODEMESH_ENVOYS", num_args = 0..=1, default_missing_value = "0.0.0.0:15010")]
    pub envoys: Option<SocketAddr>,
    /// Host name or IP address by which clients know this server; may be repeated
    #[arg(long, value_name = "HOST_OR_IP")]
    pub name: Vec<String>,
    /// How often agents say that they are there
    #[arg(long, default_value = "10s", value_parser = seconds)]
    pub heartbeat: Duration,
    /// How long a node's workloads stay without a heartbeat
    #[arg(long, default_value = "30s", value_parser = seconds)]
    pub lease: Duration,
    /// How long the certificates of workloads are good for; agents renew them at half of it
    #[arg(long, default_value = "1h", value_parser = seconds)]
    pub svid_ttl: Duration,
    /// How long the certificates of nodes are good for: an agent that is away for longer joins again with its token
    #[arg(long, default_value = "168h", value_parser = days)]
    pub node_ttl: Duration,
    /// Intermediate that signs, PEM, instead of the mesh's own root; with --ca-key and --ca-bundle
    #[arg(long, value_name = "FILE", requires = "ca_key", requires = "ca_bundle")]
    pub ca_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// The roots above it, PEM; the first is the one that join tokens name
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_bundle: Option<PathBuf>,
    /// Certificate that the REST port shows instead of one of the mesh's authority, PEM with what is between it and a
    /// root; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Directory of YAML and JSON files whose objects are part of the mesh; what vanishes from it is removed
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,
    /// Directory of key sets that the Mesh's jwtProviders name; absent: jwks in the data directory
    #[arg(long, value_name = "DIR")]
    pub jwks_dir: Option<PathBuf>,
    /// How often the URL of a key set is asked, at most
    #[arg(long, default_value = "30s", value_parser = seconds)]
    pub jwks_refresh: Duration,
    /// Ask for key sets without TLS elsewhere than on loopback as well: whoever is on the way can issue tokens
    #[arg(long)]
    pub jwks_plain_http: bool,
    /// The store, and the replicas that share it
    #[command(flatten)]
    pub store: StoreArgs,
    /// Acknowledge writes before they are on disk: for measuring the rest only, loses data
    #[arg(long, hide = true)]
    pub no_fsync: bool,
    /// What to log, as in "info" or "mesh_control=debug"
    #[arg(long, env = "NODEMESH_LOG", default_value = "info")]
    pub log: String,
}

impl Serve {
    /// The two durations, checked against each other.
    pub fn times(&self) -> Result<Times, String> {
        if self.lease < 2 * self.heartbeat {
            return Err(format!(
                "--lease {:?} is shorter than two heartbeats of {:?}: one lost heartbeat would end every workload",
                self.lease, self.heartbeat
            ));
        }
        Ok(Times { heartbeat: self.heartbeat, lease: self.lease })
    }

    /// How long certificates are good for.
    pub fn lives(&self) -> Result<Lives, String> {
        if self.svid_ttl < Duration::from_secs(2) {
            return Err(format!(
                "--svid-ttl {:?} is too short to be renewed; accepted: 2s..=24h",
                self.svid_ttl
            ));
        }
        Ok(Lives { svid: self.svid_ttl.as_secs(), node: self.node_ttl.as_secs() })
    }

    /// How to look for the keys of those who issue tokens.
    pub fn jwks(&self) -> Ways {
        Ways {
            dir: self.jwks_dir.clone().unwrap_or_else(|| self.data.join("jwks")),
            least: self.jwks_refresh,
            plain_http: self.jwks_plain_http,
        }
    }

    /// The certificate of the REST port that was given.
    pub fn tls(&self) -> Option<tls::given::Files> {
        Some(tls::given::Files { cert: self.tls_cert.clone()?, key: self.tls_key.clone()? })
    }

    /// The intermediate that was given.
    pub fn given(&self) -> Option<Given> {
        let (cert, key) = (self.ca_cert.clone()?, self.ca_key.clone()?);
        Some(Given { cert, key, bundle: self.ca_bundle.clone()? })
    }
}

fn days(text: &str) -> Result<Duration, String> {
    mesh_api::duration::parse(text)
        .filter(|time| (2..=30 * 86_400).contains(&time.as_secs()) && time.subsec_nanos() == 0)
        .ok_or_else(|| "accepted: whole seconds in 2s..=720h".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    mesh_api::duration::parse(text)
        .filter(|time| (1..=86_400).contains(&time.as_secs()) && time.subsec_nanos() == 0)
        .ok_or_else(|| "accepted: whole seconds in 1s..=24h".to_owned())
}
