//! HBONE: connections between nodes, each a CONNECT stream of HTTP/2 in mutual TLS.
//!
//! ```text
//! transport ──▶ pool ─▶ client ─▶ ┐                          ┌ ─▶ server ─▶ authorise ─▶ the application
//!               (one for each     ├ drive ═ wire ═▶ 15008 ═══┤
//!                source, place)   ┘ (windows, PING)          └ stream
//! ```
//!
//! Files: [`wire`] TLS; [`tunnel`] what a tunnel is; [`drive`] what keeps it going; [`windows`] how much may be on its
//! way; [`stream`], [`piece`] the connections inside; [`pool`], [`client`] this end calls; [`server`] this end is called;
//! [`stats`] what is counted.
//!
//! Invariants: a tunnel lives on one worker, and carries the connections of one workload; handshakes are bounded in
//! time; whatever ends a tunnel ends its streams with a reset. Not here: what a certificate must be (mesh-identity),
//! what a CONNECT may ask for (mesh-core's hbone), which connections need a tunnel (intercept).

pub mod client;
pub mod drive;
pub mod piece;
pub mod pool;
pub mod server;
pub mod stats;
pub mod stream;
pub mod tunnel;
pub mod windows;
pub mod wire;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::{client as h2_client, server as h2_server};
use mesh_api::spiffe::SpiffeId;
use mesh_core::error::ProxyError;
use mesh_identity::verify::Roots;
use mesh_identity::{Bundle, Keys, Svid, tls};
use rustls::crypto::CryptoProvider;

use super::member::Member;
use super::worker::Worker;
use crate::authorise::Quota;

/// Largest frame that is taken.
const FRAME: u32 = 1 << 20;
/// Streams that a peer may have open in one tunnel.
const STREAMS: u32 = 256;
/// Streams that are opened in one tunnel, however many its peer allows.
pub const STREAMS_OUT: usize = 200;
/// What h2 charges for small DATA frames that lie unread (256 less their length each) before it ends the connection.
/// This is 131 000 frames of one byte: who writes a byte at a time to a reader that stalls keeps its tunnel.
const SMALL_FRAMES: usize = 32 << 20;
/// Until a peer has said how many streams it allows.
const UNTOLD: usize = u16::MAX as usize;

/// Handshakes that failed and are logged.
static LOGGED: Quota = Quota::new();

fn h2_client() -> h2_client::Builder {
    let mut builder = h2_client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(windows::START)
        .initial_connection_window_size(2 * windows::START)
        .max_frame_size(FRAME)
        .max_header_list_size(16 * 1024)
        .max_send_buffer_size(stream::SEND)
        .initial_max_send_streams(UNTOLD)
        .data_frame_budget(SMALL_FRAMES);
    builder
}

fn h2_server() -> h2_server::Builder {
    let mut builder = h2_server::Builder::new();
    builder
        .initial_window_size(windows::START)
        .initial_connection_window_size(2 * windows::START)
        .max_frame_size(FRAME)
        .max_header_list_size(64 * 1024)
        .max_send_buffer_size(stream::SEND)
        .max_concurrent_streams(STREAMS)
        .data_frame_budget(SMALL_FRAMES);
    builder
}

/// Windows as the builders set them.
const FIRST: (u32, u32) = (windows::START, 2 * windows::START);

/// What a worker needs for handshakes.
pub struct Identities {
    keys: Arc<dyn Keys>,
    provider: Arc<CryptoProvider>,
    /// The newest bundle, parsed.
    roots: RefCell<Option<(Arc<Bundle>, Arc<Roots>)>>,
}

/// What one handshake shows and believes.
pub(super) struct Shown {
    pub(super) svid: Arc<Svid>,
    bundle: Arc<Bundle>,
    roots: Arc<Roots>,
}

impl Identities {
    /// Where certificates come from.
    pub fn new(keys: Arc<dyn Keys>) -> Self {
        Self { keys, provider: tls::provider(), roots: RefCell::default() }
    }

    /// The newest bundle and its parsed form; `None`: there is none that can be used.
    fn roots(&self) -> Option<(Arc<Bundle>, Arc<Roots>)> {
        let bundle = self.keys.bundle()?;
        let mut held = self.roots.borrow_mut();
        if let Some((old, roots)) = held.as_ref()
            && Arc::ptr_eq(old, &bundle)
        {
            return Some((bundle, roots.clone()));
        }
        match Roots::new(&bundle) {
            Ok(roots) => {
                let roots = Arc::new(roots);
                *held = Some((bundle.clone(), roots.clone()));
                Some((bundle, roots))
            }
            Err(error) => {
                if LOGGED.take() {
                    tracing::error!(%error, "the mesh's authorities cannot be used: no tunnel is opened");
                }
                None
            }
        }
    }

    fn shown(&self, id: &SpiffeId) -> Result<Shown, ProxyError> {
        let svid = self.keys.svid(id).ok_or(ProxyError::NoCertificate)?;
        let (bundle, roots) = self.roots().ok_or(ProxyError::NoCertificate)?;
        Ok(Shown { svid, bundle, roots })
    }
}

/// Between two looks for a certificate that is on its way.
const LOOK: Duration = Duration::from_millis(10);

/// What a handshake of a workload of this node shows. A workload that has just come is called before its first
/// certificate is signed, and may call: it is waited for, for part of the time that a handshake may take.
pub(super) async fn shown(worker: &Worker, member: &Member) -> Result<Shown, ProxyError> {
    let until = Instant::now() + worker.limits.tunnel * 3 / 5;
    loop {
        let shown = identity_of(worker, member).and_then(|id| worker.identities.shown(&id));
        if shown.is_ok() || Instant::now() >= until || member.usage.gone() {
            return shown;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Who a workload of this node is.
fn identity_of(worker: &Worker, member: &Member) -> Result<SpiffeId, ProxyError> {
    worker.with_snapshot(|snapshot| {
        let workload = snapshot.workloads.get(&member.workload).ok_or(ProxyError::NoCertificate)?;
        SpiffeId::new(&snapshot.trust_domain, workload.namespace(), &workload.service_account)
            .map_err(|_| ProxyError::NoCertificate)
    })
}
