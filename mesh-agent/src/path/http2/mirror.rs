//! Copies of requests of HTTP/2, as a route asks for them: sent on piece by piece, their answers thrown away.
//!
//! The request that is copied never waits for its copy: a copy whose endpoint takes its pieces more slowly, by
//! [`PIECES`], is given up, and so is one whose request breaks off. Where [`MOST`] copies are under way a request is
//! not copied. All are counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{HeaderMap, Request};
use mesh_core::error::ProxyError;
use mesh_core::route::Mirror;
use mesh_core::snapshot::Snapshot;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::super::authorise::{Whose, request_as};
use super::super::intercept::Hop;
use super::super::member::Member;
use super::super::routing::{Account, Caller};
use super::super::stats::one;
use super::super::worker::Worker;

/// Copies of a worker that may be under way, those of HTTP/1 among them.
const MOST: u32 = 64;
/// Pieces of a body, of at most a frame each, that may wait for a copy's endpoint.
const PIECES: usize = 16;
/// How long a copy's endpoint may take to be reached, and to answer once it has all of it.
const WITHIN: Duration = Duration::from_secs(10);

enum Piece {
    Data(Bytes),
    End(Option<HeaderMap>),
}

/// Where the pieces of a request's body go besides to its endpoint.
#[derive(Default)]
pub struct Taps(Vec<Sender<Piece>>);

impl Taps {
    /// A piece has come.
    pub fn data(&mut self, piece: &Bytes) {
        self.each(|| Piece::Data(piece.clone()));
    }

    /// All have, with these trailers.
    pub fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.each(|| Piece::End(trailers.cloned()));
        self.0.clear();
    }

    /// Who has no room is let go.
    fn each(&mut self, piece: impl Fn() -> Piece) {
        if !self.0.is_empty() {
            self.0.retain(|tap| tap.try_send(piece()).is_ok());
        }
    }
}

/// One copy under way.
struct Copy(Rc<Worker>);

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

/// Begins copies of a request. `head`: as its endpoint gets it; `whole`: there is no body.
pub fn begin(
    caller: &Caller<'_>,
    snapshot: &Snapshot,
    mirrors: &[Mirror],
    head: &Request<()>,
    whole: bool,
) -> Taps {
    let (worker, member) = (caller.worker, caller.member);
    let counters = &worker.shared.counters;
    let mut taps = Taps::default();
    for mirror in mirrors.iter().filter(|mirror| mirror.takes(fastrand::u64(..))) {
        let service = mirror.service.and_then(|id| snapshot.services.get(&id));
        let hop = service.and_then(|service| caller.balance(service).ok());
        let (Some(hop), true) = (hop, worker.mirrors.get() < MOST) else {
            one(&counters.mirror_skipped);
            continue;
        };
        worker.mirrors.set(worker.mirrors.get() + 1);
        one(&counters.mirrored);
        let (tap, pieces) = channel(PIECES);
        if !whole {
            taps.0.push(tap);
        }
        let (copy, member, head) = (Copy(worker.clone()), member.clone(), head.clone());
        drop(tokio::task::spawn_local(async move {
            if send(&copy.0, &member, hop, head, (whole, pieces)).await.is_err() {
                one(&copy.0.shared.counters.mirror_failed);
            }
        }));
    }
    taps
}

async fn within<T>(work: impl Future<Output = Result<T, ProxyError>>) -> Result<T, ProxyError> {
    tokio::time::timeout(WITHIN, work).await.unwrap_or(Err(ProxyError::UpstreamTimeout))
}

async fn send(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    hop: Hop,
    mut head: Request<()>,
    (whole, mut pieces): (bool, Receiver<Piece>),
) -> Result<(), ProxyError> {
    let mut account = Account::begun_now();
    let granted = request_as(worker, member, &Whose::Member, &hop, &head, &mut account).await?;
    // A copy says no more of its caller than the request does.
    if let Some(told) = granted.told {
        told.edit(head.headers_mut());
    }
    let lease = within(worker.peers.lease(worker, member, &hop)).await?;
    let broken = |_: h2::Error| ProxyError::UpstreamReset;
    let mut sender = within(async { lease.sender().ready().await.map_err(broken) }).await?;
    let (response, mut up) = sender.send_request(head, whole).map_err(broken)?;
    let mut open = !whole;
    while open {
        match pieces.recv().await {
            Some(Piece::Data(piece)) => within(pass(&mut up, piece)).await?,
            Some(Piece::End(trailers)) => {
                let ended = match trailers {
                    Some(trailers) => up.send_trailers(trailers),
                    None => up.send_data(Bytes::new(), true),
                };
                ended.map_err(broken)?;
                open = false;
            }
            None => {
                up.send_reset(Reason::CANCEL);
                return Err(ProxyError::UpstreamReset);
            }
        }
    }
    within(async {
        let mut answer = response.await.map_err(broken)?.into_body();
        while let Some(piece) = answer.data().await {
            let length = piece.map_err(broken)?.len();
            // Fails where the stream has ended, and its window with it.
            let _ = answer.flow_control().release_capacity(length);
        }
        Ok(())
    })
    .await
}

async fn pass(up: &mut SendStream<Bytes>, mut piece: Bytes) -> Result<(), ProxyError> {
    while !piece.is_empty() {
        up.reserve_capacity(piece.len());
        let room = std::future::poll_fn(|cx| up.poll_capacity(cx)).await;
        let Some(Ok(room)) = room else { return Err(ProxyError::UpstreamReset) };
        let part = piece.split_to(room.min(piece.len()));
        up.send_data(part, false).map_err(|_| ProxyError::UpstreamReset)?;
    }
    Ok(())
}
