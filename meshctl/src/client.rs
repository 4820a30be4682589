//! The HTTPS client of the control plane's REST API.
//!
//! Trusts one certificate authority, the mesh's own; every failure becomes one sentence with a remedy.
//!
//! Invariant: an answer is read up to [`ANSWER_MAX`]; a request ends after [`REQUEST_TIME`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use mesh_api::error::ApiError;
use serde::Deserialize;
use serde_json::Value;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

const REQUEST_TIME: Duration = Duration::from_secs(30);
/// How long one of several servers may take to take a connection.
const PRESENT: Duration = Duration::from_secs(1);
/// A list of some hundred thousand objects.
const ANSWER_MAX: u64 = 256 << 20;

/// Where the control plane is, and who is asking.
#[derive(Args)]
pub struct Connection {
    /// URL of the control plane; several with commas between them: the first that is there is asked
    #[arg(
        long,
        global = true,
        env = "MESHCTL_SERVER",
        value_name = "URL,…",
        default_value = "https://127.0.0.1:15080"
    )]
    server: String,
    /// Certificate of the mesh's authority (ca.pem of the control plane's data directory)
    #[arg(long, global = true, env = "MESHCTL_CA", default_value = "/var/lib/nodemesh-control/ca.pem")]
    ca: PathBuf,
    /// File with an API token
    #[arg(
        long,
        global = true,
        env = "MESHCTL_TOKEN_FILE",
        default_value = "/var/lib/nodemesh-control/admin.token"
    )]
    token_file: PathBuf,
}

impl Connection {
    /// Reads both files; nothing is sent yet.
    pub fn open(&self) -> Result<Client> {
        let pem = std::fs::read(&self.ca).with_context(|| {
            format!(
                "cannot read the mesh's authority {}; copy the control plane's ca.pem and name it with --ca",
                self.ca.display()
            )
        })?;
        // More than one while the mesh's root is rotated.
        let items = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let roots: Vec<Certificate<'static>> = items.collect();
        if roots.is_empty() {
            bail!(
                "{} holds no PEM certificate; name the control plane's ca.pem with --ca",
                self.ca.display()
            );
        }
        let token = std::fs::read_to_string(&self.token_file).with_context(|| {
            format!("cannot read the API token {}; name one with --token-file", self.token_file.display())
        })?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_TIME))
            .proxy(None)
            .build()
            .new_agent();
        let all = self.server.split(',').map(|server| server.trim().trim_end_matches('/').to_owned());
        let servers: Vec<String> = all.collect();
        if let Some(server) = servers.iter().find(|server| !server.starts_with("https://")) {
            bail!("--server {server} is not an https:// URL; the control plane speaks TLS only");
        }
        let server = present(&servers);
        Ok(Client { agent, server, authorization: format!("Bearer {}", token.trim()) })
    }
}

/// The first of several that takes a connection; the first where none does, which says why when it is asked.
fn present(servers: &[String]) -> String {
    use std::net::{TcpStream, ToSocketAddrs};
    let takes = |server: &&String| {
        let Ok(uri) = server.parse::<ureq::http::Uri>() else { return false };
        let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(443)) else { return false };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = (host, port).to_socket_addrs().into_iter().flatten();
        addresses.into_iter().any(|address| TcpStream::connect_timeout(&address, PRESENT).is_ok())
    };
    let found = if servers.len() > 1 { servers.iter().find(takes) } else { None };
    found.or(servers.first()).cloned().unwrap_or_default()
}

/// A control plane that can be asked.
pub struct Client {
    agent: ureq::Agent,
    server: String,
    authorization: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: ApiError,
}

impl Client {
    /// GET.
    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Value> {
        let request = self.agent.delete(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.send_json(body))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    fn answer(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_MAX)
            .read_to_vec()
            .map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            return serde_json::from_slice(&body)
                .with_context(|| format!("{} did not answer with JSON; is it a mesh-control?", self.server));
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => bail!(refusal.error.message),
            Err(_) => bail!("{} answered {status}; is it a mesh-control?", self.server),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> anyhow::Error {
        let server = &self.server;
        match error {
            ureq::Error::Timeout(_) => anyhow!(
                "{server} did not answer in time ({error}); try again, or look at the log of mesh-control"
            ),
            ureq::Error::HostNotFound => anyhow!("the host of {server} is unknown; check --server"),
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                anyhow!("--server {server} is not a URL such as https://127.0.0.1:15080")
            }
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => anyhow!(
                "{server} is not trusted ({error}); check that --ca is its ca.pem and that --server is a name in its certificate (mesh-control --name)"
            ),
            // rustls' own errors may come wrapped in an I/O error.
            ureq::Error::Io(io)
                if io.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>) =>
            {
                anyhow!(
                    "{server} is not trusted ({io}); check that --ca is its ca.pem and that --server is a name in its certificate (mesh-control --name)"
                )
            }
            _ => anyhow!("cannot reach {server} ({error}); is mesh-control running there? check --server"),
        }
    }
}
