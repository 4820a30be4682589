//! One unary call of gRPC, by a workload to a service of the mesh: what the agent itself asks of others.
//!
//! Goes as a stream of the workload's own would: balanced, authorised, through tunnels, on connections that are shared
//! with its other streams. Invariant: an answer is bounded, and complete only with `grpc-status` 0.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::header::{CONTENT_TYPE, HeaderMap, TE};
use http::{Method, Request, Uri, Version};
use mesh_core::error::ProxyError;
use mesh_core::snapshot::ServiceId;

use super::super::authorise::Whose;
use super::super::intercept::To;
use super::super::member::Member;
use super::super::routing::Account;
use super::super::stats::Direction;
use super::super::worker::Worker;
use super::Shared;
use super::mirror::Taps;
use super::peers::Peers;
use super::request::{Ready, failure, send};

/// Most bytes of an answer.
const MOST: usize = 64 << 10;
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Why there is no answer.
#[derive(Debug)]
pub enum CallError {
    /// This.
    Failed(ProxyError),
    /// The server's own `grpc-status`.
    Status(i32),
    /// It is no message of gRPC, or too long a one.
    Malformed(&'static str),
}

impl From<ProxyError> for CallError {
    fn from(error: ProxyError) -> Self {
        Self::Failed(error)
    }
}

/// Calls `path` of the service, and returns the message of the answer.
pub async fn call(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    service: ServiceId,
    path: &'static str,
    message: Bytes,
) -> Result<Bytes, CallError> {
    let shared = Rc::new(Shared {
        worker: worker.clone(),
        member: member.clone(),
        direction: Direction::Out,
        to: To::Service(service),
        whose: Whose::Member,
        prefer_v6: false,
        streams: Cell::new(0),
        kept: Cell::new(0),
        moved: Cell::new(false),
        own: Peers::default(),
    });
    let found = worker.with_snapshot(|snapshot| snapshot.services.get(&service).cloned());
    let backend = found.ok_or(ProxyError::NoEndpoints)?;
    let authority = format!("{}.{}:{}", backend.name, backend.namespace, backend.port);
    let hop = shared.caller().balance(&backend)?;
    let mut ready = Ready {
        head: head(&authority, path)?,
        hop,
        backend: Some(backend),
        edits: None,
        terms: None,
        taps: Taps::default(),
    };
    let sent = send(&shared, &mut ready, false, &mut Account::begun_now()).await?;
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).map_err(|_| CallError::Malformed("a question of 4 GiB"))?);
    framed.put(message);
    if let Some(mut up) = sent.up {
        // What the windows do not take at once waits in the connection, and goes when they do.
        up.send_data(framed.freeze(), true).map_err(|error| failure(&error))?;
    }
    let response = sent.response.await.map_err(|error| failure(&error))?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        return Err(CallError::Malformed("its status of HTTP is no success"));
    }
    if let Some(code) = status(&parts.headers).filter(|code| *code != 0) {
        return Err(CallError::Status(code));
    }
    read(body).await
}

fn head(authority: &str, path: &'static str) -> Result<Request<()>, ProxyError> {
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path);
    Request::builder()
        .method(Method::POST)
        .uri(uri.build().map_err(|_| ProxyError::Internal)?)
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(())
        .map_err(|_| ProxyError::Internal)
}

async fn read(mut body: RecvStream) -> Result<Bytes, CallError> {
    let mut all = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(|error| failure(&error))?;
        // A stream that is over gives its window back by itself.
        let _ = body.flow_control().release_capacity(piece.len());
        if all.len() + piece.len() > MOST {
            return Err(CallError::Malformed("it is longer than 64 KiB"));
        }
        all.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.map_err(|error| failure(&error))?;
    match trailers.as_ref().and_then(status) {
        Some(0) => {}
        Some(code) => return Err(CallError::Status(code)),
        None => return Err(CallError::Malformed("it has no grpc-status")),
    }
    message(&all.freeze())
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// The one message of an answer.
fn message(all: &Bytes) -> Result<Bytes, CallError> {
    match all.first_chunk::<PREFIX>() {
        Some([0, length @ ..]) if u32::from_be_bytes(*length) as usize == all.len() - PREFIX => {
            Ok(all.slice(PREFIX..))
        }
        Some([1, ..]) => Err(CallError::Malformed("it is compressed, which was not asked for")),
        _ => Err(CallError::Malformed("it is not one message")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_whole_message() {
        let of = |bytes: &'static [u8]| message(&Bytes::from_static(bytes)).ok();
        assert_eq!(of(b"\0\0\0\0\x02ab").as_deref(), Some(&b"ab"[..]));
        assert_eq!(of(b"\0\0\0\0\0").as_deref(), Some(&b""[..]));
        for bad in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x03ab", b"\0\0\0\0\x01ab", b"\x01\0\0\0\x02ab"] {
            assert!(of(bad).is_none(), "{bad:?}");
        }
    }
}
