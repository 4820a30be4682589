//! Copies of requests, as a route asks for them: sent on, their answers thrown away.
//!
//! The request that is copied never waits for its copy. What is copied is what had come at once: a request whose body
//! is still on its way is not, and neither is one where [`MOST`] copies are under way. Both are counted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::error::ProxyError;
use mesh_core::http1::{RequestEdits, RequestHead, write_request};
use mesh_core::route::Mirror;
use mesh_core::snapshot::Snapshot;

use super::super::authorise::{Whose, request};
use super::super::buffers::Buf;
use super::super::intercept::Hop;
use super::super::link::Link;
use super::super::member::Member;
use super::super::routing::Account;
use super::super::stats::one;
use super::super::transport;
use super::super::worker::Worker;
use super::Connection;
use super::acquire::with_head;
use super::request::GROWTH;

/// Copies of a worker that may be under way.
const MOST: u32 = 64;
/// How long a copy may take.
const WITHIN: Duration = Duration::from_secs(10);

/// One copy under way.
struct Copy(Rc<Worker>);

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.mirrors.set(self.0.mirrors.get() - 1);
    }
}

impl Connection {
    /// Sends copies of a request. `edits`: as its endpoint gets it; `body`: all of its body, `None`: not all is there.
    pub(super) fn mirror(
        &self,
        snapshot: &Snapshot,
        mirrors: &[Mirror],
        head: &RequestHead<'_>,
        edits: &RequestEdits<'_>,
        body: Option<&[u8]>,
    ) {
        let worker = &self.session.worker;
        let counters = &worker.shared.counters;
        for mirror in mirrors.iter().filter(|mirror| mirror.takes(fastrand::u64(..))) {
            let service = mirror.service.and_then(|id| snapshot.services.get(&id));
            let hop = service.and_then(|service| self.caller().balance(service).ok());
            let (Some(hop), Some(body), true) = (hop, body, worker.mirrors.get() < MOST) else {
                one(&counters.mirror_skipped);
                continue;
            };
            let grown = edits.headers.map_or(0, mesh_core::route::HeaderEdits::bytes);
            let mut out = worker.buffers.fitting(head.length() + GROWTH + grown + body.len());
            write_request(head, edits, out.bytes());
            let written = out.data().len();
            out.bytes().extend_from_slice(body);
            worker.mirrors.set(worker.mirrors.get() + 1);
            one(&counters.mirrored);
            let copy = Copy(worker.clone());
            let member = self.session.member.clone();
            drop(tokio::task::spawn_local(async move {
                let sent = tokio::time::timeout(WITHIN, send(&copy.0, &member, hop, (out, written))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    one(&copy.0.shared.counters.mirror_failed);
                }
            }));
        }
    }
}

/// Sends a copy, of which the first `head` bytes are its head, and reads until its endpoint closes.
async fn send(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    hop: Hop,
    (out, head): (Buf, usize),
) -> Result<(), ProxyError> {
    let mut account = Account::begun_now();
    let asked = out.data().get(..head).unwrap_or_default();
    let (told, _) = request(worker, member, &Whose::Member, &hop, asked, &mut account).await?;
    // A copy says no more of its caller than the request does.
    let out = match told {
        Some(told) => with_head(worker, &told, &out, head),
        None => out,
    };
    let watch = worker.clock.watch(member);
    let target = hop.target(worker, member)?;
    let link = Rc::new(Link::new(transport::open(worker, &target, &watch).await?));
    link.own(Some(watch.rc().clone()));
    link.set_out(out);
    std::future::poll_fn(|cx| link.poll_flush(cx)).await.map_err(|e| ProxyError::upstream(e.kind()))?;
    let mut read = 0;
    loop {
        let got = std::future::poll_fn(|cx| link.poll_input(cx, &worker.buffers)).await;
        match got {
            // Some endpoints reset what they have answered.
            Ok(0) | Err(_) if read > 0 => return Ok(()),
            Ok(0) => return Err(ProxyError::UpstreamClosed),
            Err(error) => return Err(ProxyError::upstream(error.kind())),
            Ok(n) => read += n,
        }
        link.consume(usize::MAX);
    }
}
