//! This node's membership: joined once with the token, proved from then on with a certificate of its own.
//!
//! Certificate and key are kept in the state directory (0600), because a token for a single use opens the door
//! once: without them a restart would lock the node out. The token's file is read again at each attempt to join, so
//! that a new one helps without a restart; one that another token was put into is a wish to join anew.
//!
//! Invariants: only `Identity.Join` is called without a certificate; a token that was refused is not sent again
//! within [`SAME_TOKEN`] by a node that has a certificate.
//! Not here: renewal (renew), connections (config::connect).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_api::proto::v1;
use mesh_api::proto::v1::identity_client::IdentityClient;
use mesh_api::spiffe::NodeId;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::timeout;
use zeroize::Zeroize;

use super::credentials::{Credentials, NodeCert};
use super::make::{self, Key};
use super::{hex, unhex, unix_now};
use crate::config::connect::{ConnectError, ControlPlane, JoinToken};
use crate::config::disk::{set_aside, write_atomically};
use crate::config::xds::explain;

const FILE: &str = "node-identity.json";
const VERSION: u32 = 1;
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a refused token is not tried again.
const SAME_TOKEN: Duration = Duration::from_secs(30);

/// As it stands on disk.
#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    identity: String,
    /// Id of the token that it joined with.
    joined_by: String,
    /// PKCS#8, hex.
    key: String,
    chain: Vec<String>,
    serial: String,
    not_before: u64,
    not_after: u64,
    generation: u64,
    roots: Vec<String>,
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// The membership. Shared by all who connect.
pub struct Member {
    node: String,
    token_file: PathBuf,
    state_dir: PathBuf,
    credentials: Arc<Credentials>,
    /// The control plane did not take the certificate.
    doubted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    joined_by: String,
    /// A token that was refused, and when.
    refused: Option<(String, Instant)>,
}

impl Member {
    /// Reads what an earlier agent left; without any of it, there must be a token.
    pub fn open(node: &str, token_file: &Path, state_dir: &Path) -> Result<Arc<Self>, ConnectError> {
        let credentials = Arc::new(Credentials::default());
        let joined_by = load(node, state_dir, &credentials).unwrap_or_default();
        let mut doubted = false;
        match JoinToken::read(token_file) {
            Ok(token) => {
                credentials.pin(token.pin());
                doubted = !joined_by.is_empty() && token.id() != joined_by;
            }
            Err(_) if credentials.node().is_some_and(|node| node.not_after > unix_now()) => {}
            Err(error) => return Err(error),
        }
        Ok(Arc::new(Self {
            node: node.to_owned(),
            token_file: token_file.to_owned(),
            state_dir: state_dir.to_owned(),
            credentials,
            doubted: AtomicBool::new(doubted),
            state: Mutex::new(State { joined_by, refused: None }),
        }))
    }

    /// What connections show and believe.
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// The control plane did not take the certificate: the next connection joins first.
    pub fn doubt(&self) {
        self.doubted.store(true, Relaxed);
    }

    /// No connection can be opened: another token may have been put in place, of another root perhaps.
    pub fn look_for_token(&self) {
        let (Ok(token), Ok(state)) = (JoinToken::read(&self.token_file), self.state.try_lock()) else {
            return;
        };
        if !state.joined_by.is_empty() && token.id() != state.joined_by {
            self.credentials.pin(token.pin());
            self.doubt();
        }
    }

    /// Makes sure that there is a certificate to show.
    pub async fn ensure(&self, control: &ControlPlane) -> Result<(), ConnectError> {
        let mut state = self.state.lock().await;
        let valid = self.credentials.node().is_some_and(|node| node.not_after > unix_now());
        if valid && !self.doubted.swap(false, Relaxed) {
            return Ok(());
        }
        match self.join(control, &mut state, valid).await {
            Ok(()) => Ok(()),
            // It may be good still; the control plane's own words say more.
            Err(error) if valid => {
                tracing::debug!(%error, "cannot join anew");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn join(&self, control: &ControlPlane, state: &mut State, valid: bool) -> Result<(), ConnectError> {
        let token = JoinToken::read(&self.token_file)?;
        let again = |(id, at): &(String, Instant)| *id == token.id() && at.elapsed() < SAME_TOKEN;
        if valid && state.refused.as_ref().is_some_and(again) {
            return Ok(());
        }
        self.credentials.pin(token.pin());
        let (key, csr) = make::key(None)?;
        let channel = control.channel().await?;
        let request = v1::JoinRequest { token: token.text().to_owned(), node: self.node.clone(), csr };
        let mut client = IdentityClient::new(channel);
        let answer = match timeout(CALL, client.join(request)).await {
            Err(_) => return Err(ConnectError::Join("it does not answer".to_owned())),
            Ok(Err(status)) => {
                state.refused = Some((token.id().to_owned(), Instant::now()));
                return Err(ConnectError::Join(explain(&status)));
            }
            Ok(Ok(answer)) => answer.into_inner(),
        };
        let bundle = answer.bundle.unwrap_or_default();
        let certificate = answer.certificate.unwrap_or_default();
        let identity = NodeId::new(&bundle.trust_domain, &self.node)
            .map_err(|error| ConnectError::Join(error.to_string()))?;
        self.credentials.believe(certificates(&bundle.roots));
        state.refused = None;
        token.id().clone_into(&mut state.joined_by);
        tracing::info!(identity = %identity, serial = certificate.serial, "this node has joined");
        self.take(&identity.to_string(), &key, &certificate, &state.joined_by)
    }

    /// The node's certificate came anew.
    pub async fn renewed(
        &self,
        identity: &str,
        key: &Key,
        certificate: &v1::Certificate,
    ) -> Result<(), ConnectError> {
        let state = self.state.lock().await;
        self.take(identity, key, certificate, &state.joined_by)
    }

    /// Shows it from now on, and keeps it.
    fn take(
        &self,
        identity: &str,
        key: &Key,
        certificate: &v1::Certificate,
        joined_by: &str,
    ) -> Result<(), ConnectError> {
        let certified = key.certified(certificates(&certificate.chain))?;
        self.credentials.show(NodeCert {
            certified,
            identity: identity.to_owned(),
            serial: certificate.serial.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            generation: certificate.generation,
        });
        let saved = Saved {
            version: VERSION,
            identity: identity.to_owned(),
            joined_by: joined_by.to_owned(),
            key: hex(key.pkcs8()),
            chain: certificate.chain.iter().map(|der| hex(der)).collect(),
            serial: certificate.serial.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            generation: certificate.generation,
            roots: self.credentials.believed().1.iter().map(|der| hex(der)).collect(),
        };
        let path = self.state_dir.join(FILE);
        let write = |out: &mut dyn Write| Ok(serde_json::to_writer(out, &saved)?);
        if let Err(error) = write_atomically(&path, write) {
            // It serves until it ends; a restart would need a token that is good once more.
            tracing::error!(path = %path.display(), %error, "this node's certificate cannot be kept");
        }
        Ok(())
    }
}

/// Certificates as they came.
pub fn certificates(ders: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    ders.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

/// What an earlier agent of this node left: the id of its token.
fn load(node: &str, state_dir: &Path, credentials: &Credentials) -> Option<String> {
    let path = state_dir.join(FILE);
    let text = std::fs::read(&path).ok()?;
    match usable(node, &text) {
        Ok((cert, roots, joined_by)) => {
            credentials.believe(roots);
            credentials.show(cert);
            Some(joined_by)
        }
        Err(reason) => {
            set_aside(&path, &reason);
            None
        }
    }
}

type Usable = (NodeCert, Vec<CertificateDer<'static>>, String);

fn usable(node: &str, text: &[u8]) -> Result<Usable, String> {
    let mut saved: Saved = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if saved.version != VERSION {
        return Err(format!("its version is {}, not {VERSION}", saved.version));
    }
    let id: NodeId = saved.identity.parse().map_err(|error| format!("{error}"))?;
    if id.name() != node {
        return Err(format!("it is of node {}, and this is {node}", id.name()));
    }
    let ders = |texts: &[String]| -> Result<Vec<_>, String> {
        let der =
            |text: &String| unhex(text).map(CertificateDer::from).ok_or("it holds no hexadecimal".to_owned());
        texts.iter().map(der).collect()
    };
    let key = Key::from_pkcs8(unhex(&saved.key).ok_or("its key is no hexadecimal")?);
    let certified = key.certified(ders(&saved.chain)?).map_err(|error| error.to_string())?;
    let roots = ders(&saved.roots)?;
    let joined_by = std::mem::take(&mut saved.joined_by);
    let cert = NodeCert {
        certified,
        identity: std::mem::take(&mut saved.identity),
        serial: std::mem::take(&mut saved.serial),
        not_before: saved.not_before,
        not_after: saved.not_after,
        generation: saved.generation,
    };
    Ok((cert, roots, joined_by))
}
