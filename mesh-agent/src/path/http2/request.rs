//! One stream: from its head to the end of both bodies.
//!
//! A connect that fails is tried at other endpoints, and so is a connection that takes no stream any more. What was sent
//! is not sent again. A client that gives up ends the endpoint's stream as well.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use mesh_core::error::ProxyError;
use mesh_core::http1::Malformed;
use mesh_core::route::{Action, Edits, HeaderEdits};
use mesh_core::snapshot::Service;
use tokio::time::Instant;

use super::super::authorise::request_as;
use super::super::intercept::Hop;
use super::super::routing::{Account, Deadline, Way, nearest, within};
use super::super::stats::{Spoken, one};
use super::Shared;
use super::body::{self, Broken};
use super::head::{Asked, code_in, deny, direct, edit, is_grpc, outgoing, redirect, refuse, refused_as};
use super::mirror::{self, Taps};
use super::peers::Lease;

/// Other endpoints that are tried after a connect has failed.
const OTHERS: usize = 2;

/// Reason label where the client ended its stream before its response was complete.
const CLIENT_GONE: &str = "client_gone";

/// A stream that is under way.
struct Counted(Rc<Shared>);

impl Counted {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        Self(shared.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

/// A request, ready to be sent.
pub(super) struct Ready {
    pub head: Request<()>,
    pub hop: Hop,
    pub backend: Option<Arc<Service>>,
    pub edits: Option<Arc<Edits>>,
    pub deadline: Option<Deadline>,
    /// Where its body goes besides.
    pub taps: Taps,
}

/// Why there is no response.
enum Failed {
    /// This.
    Error(ProxyError),
    /// Its client has gone.
    Gone,
}

impl From<ProxyError> for Failed {
    fn from(error: ProxyError) -> Self {
        Self::Error(error)
    }
}

/// Serves a stream, in a task of its own.
pub(super) fn begin(shared: &Rc<Shared>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    one(&shared.worker.shared.counters.requests);
    let counted = Counted::new(shared);
    // A panic ends the task, and with it the stream, by a reset.
    drop(tokio::task::spawn_local(async move {
        let mut account = Account::begun_now();
        let shared = &counted.0;
        serve(shared, request, respond, &mut account).await;
        account.record(&shared.parties(), Spoken::Http2);
    }));
}

/// Answers that the workload's budget is used up.
pub(super) fn refused(shared: &Rc<Shared>, mut respond: SendResponse<Bytes>) {
    let mut account = Account::begun_now();
    account.failed(ProxyError::BudgetBytes);
    refuse(&mut respond, ProxyError::BudgetBytes, false);
    account.record(&shared.parties(), Spoken::Http2);
}

async fn serve(
    shared: &Rc<Shared>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    account: &mut Account,
) {
    let (parts, upload) = request.into_parts();
    let grpc = is_grpc(&parts.headers);
    account.grpc = grpc;
    let ready = shared.worker.with_snapshot(|snapshot| {
        match shared.caller().route(snapshot, &Asked(&parts), account)? {
            Way::Answered(answer) => {
                account.status = answer.status;
                direct(&mut respond, answer, grpc, parts.method == http::Method::HEAD);
                Ok(None)
            }
            Way::Elsewhere(to, matched) => {
                account.status = to.status;
                redirect(&mut respond, &Asked(&parts), to, matched);
                Ok(None)
            }
            Way::To(routed) => {
                let (hop, backend) = (routed.hop, routed.backend.clone());
                let edits = routed.edits.cloned();
                let deadline = routed.action.and_then(|action| deadline(action));
                let head = outgoing(parts, &routed)?;
                let taps = match routed.action.filter(|action| !action.mirrors.is_empty()) {
                    Some(action) => {
                        let whole = upload.is_end_stream();
                        mirror::begin(&shared.caller(), snapshot, &action.mirrors, &head, whole)
                    }
                    None => Taps::default(),
                };
                Ok(Some(Ready { head, hop, backend, edits, deadline, taps }))
            }
        }
    });
    let ready = match ready {
        Ok(Some(ready)) => ready,
        Ok(None) => return,
        Err(error) => {
            failed(account, error, grpc);
            return refuse(&mut respond, error, grpc);
        }
    };
    let (deadline, edits) = (ready.deadline, ready.edits.clone());
    let all = exchange(shared, ready, upload, &mut respond, edits, account);
    match within(deadline, all).await {
        Ok(()) => {}
        Err(Failed::Gone) => account.reason = CLIENT_GONE,
        Err(Failed::Error(error)) if account.status == 0 => {
            failed(account, error, grpc);
            match account.denial.take() {
                Some(denial) => deny(&mut respond, &denial, grpc),
                None => refuse(&mut respond, error, grpc),
            }
        }
        Err(Failed::Error(error)) => {
            // The client has seen the beginning of a response: its end must not look like one.
            account.reason = error.reason();
            one(&shared.worker.shared.counters.resets);
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// It was refused, in gRPC's form where it is a request of gRPC.
fn failed(account: &mut Account, error: ProxyError, grpc: bool) {
    account.failed(error);
    if grpc {
        (account.status, account.grpc_status) = (200, refused_as(error));
    }
}

/// The nearer of a route's limits.
fn deadline(action: &Action) -> Option<Deadline> {
    let at = |after: Option<Duration>| after.map(|after| Instant::now() + after);
    nearest(at(action.try_timeout), at(action.timeout))
}

/// The whole of it.
async fn exchange(
    shared: &Rc<Shared>,
    mut ready: Ready,
    upload: RecvStream,
    respond: &mut SendResponse<Bytes>,
    edits: Option<Arc<Edits>>,
    account: &mut Account,
) -> Result<(), Failed> {
    let taps = std::mem::take(&mut ready.taps);
    let Sent { lease, response, up, granted } = {
        let sending = send(shared, ready, upload.is_end_stream(), account);
        tokio::select! {
            sent = sending => sent?,
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Err(Failed::Gone),
        }
    };
    let moved = |bytes: &Cell<u64>, n: usize| {
        shared.moved.set(true);
        bytes.set(bytes.get() + n as u64);
    };
    let (received, downloaded_bytes) = (&account.received, &account.sent);
    let mut uploaded = pin!(async {
        match up {
            Some(up) => body::copy(upload, up, taps, |n| moved(received, n)).await.map(drop),
            None => Ok(()),
        }
    });
    let mut uploading = true;
    let mut response = pin!(response);
    let response = loop {
        tokio::select! {
            response = &mut response => break response.map_err(|e| Failed::Error(failure(&e)))?,
            sent = &mut uploaded, if uploading => {
                uploading = false;
                if let Err(Broken::From(_)) = sent {
                    return Err(Failed::Gone);
                }
                // An endpoint that takes no more of it may have answered, or will say why.
            }
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Err(Failed::Gone),
        }
    };
    let (mut parts, download) = response.into_parts();
    account.status = parts.status.as_u16();
    account.grpc_status = code_in(&parts.headers);
    if let Some(edits) = &edits {
        edit(&mut parts.headers, &edits.response);
    }
    if let Some(granted) = &granted {
        edit(&mut parts.headers, granted);
    }
    let whole = download.is_end_stream();
    let sent = respond.send_response(Response::from_parts(parts, ()), whole);
    let down = sent.map_err(|_| Failed::Gone)?;
    if !whole {
        let mut downloaded =
            pin!(body::copy(download, down, Taps::default(), |n| moved(downloaded_bytes, n)));
        let done = loop {
            tokio::select! {
                done = &mut downloaded => break done,
                _ = &mut uploaded, if uploading => uploading = false,
            }
        };
        let trailers = done.map_err(|broken| match broken {
            Broken::To(_) => Failed::Gone,
            Broken::From(_) => Failed::Error(ProxyError::UpstreamReset),
        })?;
        if let Some(code) = trailers {
            account.grpc_status = code;
        }
    }
    drop(lease);
    Ok(())
}

/// A request that has gone.
pub(super) struct Sent {
    pub lease: Lease,
    pub response: ResponseFuture,
    /// For its body.
    pub up: Option<SendStream<Bytes>>,
    /// What external authorisation changes in the response.
    pub granted: Option<Box<HeaderEdits>>,
}

/// Sends the head to an endpoint. `whole`: there is no body.
pub(super) async fn send(
    shared: &Rc<Shared>,
    ready: Ready,
    whole: bool,
    account: &mut Account,
) -> Result<Sent, ProxyError> {
    let Ready { head, mut hop, backend, .. } = ready;
    let mut tried = [0; OTHERS + 1];
    let mut failed = 0;
    loop {
        account.sent_to(&hop);
        let Shared { worker, member, whose, .. } = &**shared;
        let granted = request_as(worker, member, whose, &hop, &head, account).await?;
        let mut sent = head.clone();
        if let Some(told) = &granted.told {
            told.edit(sent.headers_mut());
        }
        let error = match shared.peers().lease(worker, member, &hop).await {
            Ok(lease) => match lease.sender().ready().await {
                Ok(mut sender) => match sender.send_request(sent, whole) {
                    Ok((response, up)) => {
                        let up = (!whole).then_some(up);
                        return Ok(Sent { lease, response, up, granted: granted.response });
                    }
                    Err(error) => failure(&error),
                },
                Err(error) => failure(&error),
            },
            Err(error) => error,
        };
        tried[failed] = hop.endpoint;
        failed += 1;
        let other = backend.as_ref().filter(|_| failed <= OTHERS);
        let Some(other) = other.and_then(|service| shared.caller().other(service, &tried[..failed])) else {
            return Err(error);
        };
        hop = other;
        one(&worker.shared.counters.retried);
    }
}

/// What an endpoint's stream or connection ended with.
pub(super) fn failure(error: &h2::Error) -> ProxyError {
    if error.is_io() {
        return ProxyError::UpstreamClosed;
    }
    match error.reason() {
        Some(Reason::PROTOCOL_ERROR | Reason::FRAME_SIZE_ERROR | Reason::COMPRESSION_ERROR)
            if !error.is_remote() =>
        {
            ProxyError::UpstreamProtocol(Malformed::StartLine)
        }
        _ => ProxyError::UpstreamReset,
    }
}
