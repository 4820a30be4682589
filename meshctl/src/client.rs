//! The HTTPS client of the control plane's REST API.
//!
//! Trusts one certificate authority, the mesh's own; every failure becomes one sentence with a remedy.
//!
//! Invariant: an answer is read up to [`ANSWER_MAX`]; a request ends after [`REQUEST_TIME`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use std::io::BufRead;

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

/// What the control plane did not do, in its words.
#[derive(Debug)]
pub struct Refused {
    /// HTTP's number for it.
    pub status: u16,
    error: ApiError,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error.message)
    }
}

impl std::error::Error for Refused {}

/// Text as a value of a query: what is not plain is escaped.
pub fn query(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~/:".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

impl Client {
    /// GET.
    pub fn get(&self, path: &str) -> Result<Value> {
        let request = self.agent.get(self.url(path)).header("authorization", &self.authorization);
        self.answer(request.call())
    }

    /// GET; `None`: it is not there.
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path) {
            Err(error) if self.is_missing(&error) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Whether that is why.
    #[allow(clippy::unused_self)] // reads as what is asked of the server
    pub fn is_missing(&self, error: &anyhow::Error) -> bool {
        error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404)
    }

    /// GET of what is no JSON.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>> {
        let request = self.agent.get(self.url(path)).header("authorization", &self.authorization);
        self.bytes(request.call())
    }

    /// POST of what is no JSON; it may take minutes.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Result<Value> {
        let request = self.agent.post(self.url(path)).header("authorization", &self.authorization);
        let request = request.config().timeout_global(Some(10 * REQUEST_TIME)).build();
        self.answer(request.header("content-type", "application/x-ndjson").send(body))
    }

    /// PUT of JSON, over this revision only.
    pub fn put(&self, path: &str, body: &Value, expect: Option<u64>) -> Result<Value> {
        let mut request = self.agent.put(self.url(path)).header("authorization", &self.authorization);
        if let Some(revision) = expect {
            request = request.header("if-match", format!("\"{revision}\""));
        }
        self.answer(request.send_json(body))
    }

    /// GET of an answer that goes on: `tell` is called with each event and its data. Ends with an error alone.
    pub fn events(&self, path: &str, mut tell: impl FnMut(&str, &Value) -> Result<()>) -> Result<()> {
        let request = self.agent.get(self.url(path)).header("authorization", &self.authorization);
        let request = request.config().timeout_global(None).build();
        let response = request.call().map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return self.answer(Ok(response)).map(drop);
        }
        let mut event = String::new();
        for line in std::io::BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.context("the watch broke off; ask again")?;
            if let Some(name) = line.strip_prefix("event: ") {
                name.clone_into(&mut event);
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(data).context("the watch is not readable")?;
                if event == "error" {
                    bail!("{}; ask again", data["error"]["message"].as_str().unwrap_or("the watch ended"));
                }
                tell(&event, &data)?;
            }
        }
        bail!("{} ended the watch; ask again", self.server)
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
        let body = self.bytes(sent)?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("{} did not answer with JSON; is it a mesh-control?", self.server))
    }

    fn bytes(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Vec<u8>> {
        let mut response = sent.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_MAX)
            .read_to_vec()
            .map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(Refusal { error }) => bail!(Refused { status: status.as_u16(), error }),
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
