//! One stream: from its head to the end of both bodies.
//!
//! A connect that fails is tried at other endpoints, a connection that takes no stream any more is replaced. What was sent
//! is sent again where its endpoint says that it has not looked at it, and where the route asks for that, while nothing of
//! an answer has gone to the client (upload). A client that gives up ends the endpoint's stream as well.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use mesh_core::error::ProxyError;
use mesh_core::http1::Malformed;
use mesh_core::resilience::answer::Answer;
use mesh_core::route::{Edits, HeaderEdits};
use mesh_core::snapshot::Service;

use super::super::authorise::request_as;
use super::super::intercept::Hop;
use super::super::resilience::rate::limit;
use super::super::routing::{Account, Way, within};
use super::super::stats::{Spoken, one};
use super::super::tries::Terms;
use super::Shared;
use super::body::{self, Broken};
use super::head::{
    Asked, code_in, deny, direct, edit, is_grpc, outgoing, redirect, refusable, refuse, refused_as,
};
use super::hedge::{self, Begun};
use super::mirror::{self, Taps};
use super::peers::Lease;
use super::upload::Upload;
use crate::sys::monotonic_ns;

/// Other endpoints that are tried after a connect has failed.
const OTHERS: usize = 2;

/// Connections that take no stream any more, that are passed over.
const SPENT: usize = 2;
/// How often a request is sent again that its endpoint has not looked at.
const UNPROCESSED: usize = 2;

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
    /// What the route says of tries and times; `None`: nothing.
    pub terms: Option<Box<Terms>>,
    /// Where its body goes besides.
    pub taps: Taps,
}

impl Ready {
    /// Is an answer, or a failure, of this status thrown away, and the request tried again? Counted as such if so.
    fn again(&mut self, keep: &Cell<bool>, status: u16) -> bool {
        let endpoint = self.hop.endpoint;
        keep.get() && self.terms.as_mut().is_some_and(|terms| terms.again(status, endpoint))
    }
}

/// Why there is no response.
pub(super) enum Failed {
    /// This.
    Error(ProxyError),
    /// The same, and its endpoint has said that it has not looked at the request.
    Unprocessed(ProxyError),
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
                // Its body is kept as it comes.
                let terms =
                    routed.action.and_then(|action| Terms::new(&shared.worker, action, hop.service, true));
                let head = outgoing(parts, &routed)?;
                let taps = match routed.action.filter(|action| !action.mirrors.is_empty()) {
                    Some(action) => {
                        let whole = upload.is_end_stream();
                        mirror::begin(&shared.caller(), snapshot, &action.mirrors, &head, whole)
                    }
                    None => Taps::default(),
                };
                Ok(Some(Ready { head, hop, backend, edits, terms, taps }))
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
    let read = Rc::new(Cell::new(0));
    let done = exchange(shared, ready, Upload::new(shared, upload, &read), &mut respond, account).await;
    account.received.set(read.get());
    let status = account.status;
    account.settle(|| match &done {
        Ok(()) => Answer::of_status(status),
        Err(Failed::Gone) => Answer::Nothing,
        Err(Failed::Error(error) | Failed::Unprocessed(error)) => Answer::of_error(error),
    });
    match done {
        Ok(()) => {}
        Err(Failed::Gone) => account.reason = CLIENT_GONE,
        Err(Failed::Error(error) | Failed::Unprocessed(error)) if account.status == 0 => {
            failed(account, error, grpc);
            match account.denial.take() {
                Some(denial) => deny(&mut respond, &denial, grpc),
                None => refuse(&mut respond, error, grpc),
            }
        }
        Err(Failed::Error(error) | Failed::Unprocessed(error)) => {
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

/// What became of a try.
enum Tried {
    /// The response has been sent on.
    Done,
    /// It was thrown away: the route asks for another.
    Again,
}

/// The whole of it, as often as the route says.
async fn exchange(
    shared: &Rc<Shared>,
    mut ready: Ready,
    mut upload: Upload,
    respond: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(), Failed> {
    let keep = Cell::new(ready.terms.as_ref().is_some_and(|terms| terms.keeps()));
    let mut unprocessed = 0;
    loop {
        let deadline = ready.terms.as_mut().and_then(|terms| {
            terms.begin();
            terms.deadline()
        });
        let tried = attempt(shared, &mut ready, (&mut upload, &keep), respond, account);
        match within(deadline, tried).await {
            Ok(Tried::Done) => return Ok(()),
            Ok(Tried::Again) => {}
            Err(Failed::Unprocessed(_)) if unprocessed < UNPROCESSED && upload.is_whole(&keep) => {
                unprocessed += 1;
                one(&shared.worker.shared.counters.retried);
                account.settle(|| Answer::Nothing);
                continue;
            }
            Err(Failed::Error(error) | Failed::Unprocessed(error))
                if account.status == 0
                    && error != ProxyError::RequestTimeout
                    && Answer::of_error(&error) != Answer::Nothing
                    && ready.again(&keep, error.status()) => {}
            Err(failed) => return Err(failed),
        }
        one(&shared.worker.shared.counters.retried);
        let Some(terms) = &ready.terms else { return Err(ProxyError::Internal.into()) };
        account.settle(|| Answer::of_status(terms.refused()));
        let caller = shared.caller();
        let next = terms.next(&caller, ready.backend.as_ref(), ready.hop, std::future::pending());
        ready.hop = tokio::select! {
            next = next => next?,
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Err(Failed::Gone),
        };
    }
}

/// One try.
async fn attempt(
    shared: &Rc<Shared>,
    ready: &mut Ready,
    (upload, keep): (&mut Upload, &Cell<bool>),
    respond: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Tried, Failed> {
    let moved = |_| shared.moved.set(true);
    let taps = std::mem::take(&mut ready.taps);
    let sent = {
        let sending = send(shared, ready, upload.is_empty(), account);
        tokio::select! {
            sent = sending => sent?,
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Err(Failed::Gone),
        }
    };
    if let Some(seed) = hedge::seed(ready, sent.up.is_none(), account) {
        let begun = hedge::first_of(shared, (ready, sent), &seed, respond, account);
        let Begun { lease, response, granted } = Box::pin(begun).await?;
        if let Some(status) = refusable(response.headers(), response.status().as_u16())
            && ready.again(keep, status)
        {
            return Ok(Tried::Again);
        }
        forward(shared, (ready, granted), response, respond, account).await?;
        drop(lease);
        return Ok(Tried::Done);
    }
    let Sent { lease, response, up, granted } = sent;
    let mut uploaded = pin!(async {
        match up {
            Some(up) => upload.copy(up, taps, keep, moved).await,
            None => Ok(()),
        }
    });
    let mut uploading = true;
    let mut response = pin!(response);
    let response = loop {
        tokio::select! {
            response = &mut response => break response.map_err(|e| failed_as(&e))?,
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
    if let Some(status) = refusable(response.headers(), response.status().as_u16())
        && ready.again(keep, status)
    {
        return Ok(Tried::Again);
    }
    keep.set(false);
    let mut downloaded = pin!(forward(shared, (ready, granted), response, respond, account));
    loop {
        tokio::select! {
            done = &mut downloaded => {
                done?;
                break;
            }
            _ = &mut uploaded, if uploading => uploading = false,
        }
    }
    drop(lease);
    Ok(Tried::Done)
}

/// Sends the response on.
async fn forward(
    shared: &Rc<Shared>,
    (ready, granted): (&Ready, Option<Box<HeaderEdits>>),
    response: Response<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<(), Failed> {
    let (mut parts, download) = response.into_parts();
    account.status = parts.status.as_u16();
    account.grpc_status = code_in(&parts.headers);
    if account.ticket.is_some() {
        account.answered(monotonic_ns());
        account.heard(account.grpc_status);
    }
    if let Some(edits) = &ready.edits {
        edit(&mut parts.headers, &edits.response);
    }
    if let Some(granted) = &granted {
        edit(&mut parts.headers, granted);
    }
    let whole = download.is_end_stream();
    let sent = respond.send_response(Response::from_parts(parts, ()), whole);
    let down = sent.map_err(|_| Failed::Gone)?;
    if whole {
        return Ok(());
    }
    let moved = |n: usize| {
        shared.moved.set(true);
        account.sent.set(account.sent.get() + n as u64);
    };
    let code = body::copy(download, down, Taps::default(), moved).await.map_err(|broken| match broken {
        Broken::To(_) => Failed::Gone,
        Broken::From(_) => Failed::Error(ProxyError::UpstreamReset),
    })?;
    if let Some(code) = code {
        account.grpc_status = code;
        account.heard(code);
    }
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
    ready: &mut Ready,
    whole: bool,
    account: &mut Account,
) -> Result<Sent, ProxyError> {
    let Ready { head, hop, backend, .. } = ready;
    account.admit(&shared.caller(), None, backend.as_ref(), hop).await?;
    let mut tried = [0; OTHERS + 1];
    let mut failed = 0;
    loop {
        account.sent_to(hop);
        let Shared { worker, member, whose, .. } = &**shared;
        let granted = request_as(worker, member, whose, hop, head, account).await?;
        limit(worker, (member, whose), hop, backend.as_deref(), |name| {
            head.headers().get(name).map(|value| value.as_bytes().to_vec())
        })?;
        let mut sent = head.clone();
        if let Some(told) = &granted.told {
            told.edit(sent.headers_mut());
        }
        let error = match start(shared, hop, sent, whole).await {
            Ok((lease, response, up)) => {
                let granted = account.stick(backend.as_ref(), hop, granted.response);
                return Ok(Sent { lease, response, up, granted });
            }
            Err(error) => error,
        };
        account.settle(|| Answer::of_error(&error));
        tried[failed] = hop.endpoint;
        failed += 1;
        let other = backend.as_ref().filter(|_| failed <= OTHERS);
        let Some(other) = other.and_then(|service| shared.caller().other(service, &tried[..failed])) else {
            return Err(error);
        };
        *hop = other;
        account.goes(hop)?;
        one(&worker.shared.counters.retried);
    }
}

/// Begins a stream at this endpoint. A connection that takes none any more, as its peer has said (GOAWAY) or because it
/// is broken, is left alone, and another one is tried: nothing was sent.
async fn start(
    shared: &Rc<Shared>,
    hop: &Hop,
    head: Request<()>,
    whole: bool,
) -> Result<(Lease, ResponseFuture, Option<SendStream<Bytes>>), ProxyError> {
    let mut spent = 0;
    loop {
        let lease = shared.peers().lease(&shared.worker, &shared.member, hop).await?;
        let begun = match lease.sender().ready().await {
            Ok(mut sender) => sender.send_request(head.clone(), whole),
            Err(error) => Err(error),
        };
        match begun {
            Ok((response, up)) => return Ok((lease, response, (!whole).then_some(up))),
            Err(error) if spent == SPENT => return Err(failure(&error)),
            Err(_) => spent += 1,
        }
        lease.retire();
    }
}

/// What a stream ended with that was to have a response.
pub(super) fn failed_as(error: &h2::Error) -> Failed {
    // RFC 9113 section 8.7: streams beyond a GOAWAY's last, and those that are refused.
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away() && error.reason() == Some(Reason::NO_ERROR)) {
        return Failed::Unprocessed(failure(error));
    }
    Failed::Error(failure(error))
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
