//! HTTP/1.1 as it comes: read the same however it arrives, and what was taken means the same to the next hop.
//!
//! Input: a byte (request or response, size of the pieces), then what arrives.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::error::ProxyError;
use mesh_core::http1::{
    BodyReader, Framing, HeadScan, Limits, MethodKind, RequestEdits, RequestFacts, ResponseEdits, Side,
    Version, parse_request, parse_response, write_request, write_response,
};

/// The request whose response is read.
const ASKED: RequestFacts =
    RequestFacts { method: MethodKind::Other, upgrade: true, version: Version::Http11, keep_alive: true };

/// Where the head ends, looked for as it arrives.
fn end(input: &[u8], side: Side, piece: usize, limits: &Limits) -> Result<Option<usize>, ProxyError> {
    let (mut scan, mut arrived) = (HeadScan::new(side), 0);
    loop {
        arrived = input.len().min(arrived + piece);
        match scan.end(&input[..arrived], limits) {
            Ok(None) if arrived < input.len() => {}
            done => return done,
        }
    }
}

/// Bytes of the body, and whether it has ended, read in pieces.
fn body(
    framing: Framing,
    side: Side,
    input: &[u8],
    piece: usize,
    limits: &Limits,
) -> Result<(usize, bool), ProxyError> {
    let (mut reader, mut at) = (BodyReader::new(framing, side, limits), 0);
    while at < input.len() && !reader.is_done() {
        let size = piece.min(input.len() - at);
        let advance = reader.advance(&input[at..at + size])?;
        assert!(advance.consume == size || advance.done);
        at += advance.consume;
    }
    Ok((at, reader.is_done()))
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else { return };
    let (side, piece) =
        (if kind % 2 == 0 { Side::Client } else { Side::Upstream }, usize::from(kind / 2 % 7) + 1);
    let limits = Limits { head_bytes: 4096, headers: 16, trailer_bytes: 256, ..Limits::default() };
    let whole = end(input, side, usize::MAX / 2, &limits);
    assert_eq!(end(input, side, piece, &limits), whole);
    let Ok(Some(length)) = whole else { return };
    let (head, rest) = input.split_at(length);
    let mut out = Vec::new();
    let framing = match side {
        Side::Client => {
            let Ok(head) = parse_request(head, &limits) else { return };
            write_request(
                &head,
                &RequestEdits { request_id: Some("1"), ..RequestEdits::default() },
                &mut out,
            );
            let limits = Limits::default();
            let again = parse_request(&out, &limits).expect("what the writer writes is a request");
            assert_eq!(again.framing, head.framing);
            assert_eq!((again.method, again.path, again.authority), (head.method, head.path, head.authority));
            head.framing
        }
        Side::Upstream => {
            let Ok(head) = parse_response(head, ASKED, &limits) else { return };
            let edits =
                ResponseEdits { keep_alive: head.client_keep_alive, client: Version::Http11, headers: None };
            write_response(&head, &edits, &mut out);
            let limits = Limits::default();
            let again = parse_response(&out, ASKED, &limits).expect("what the writer writes is a response");
            assert_eq!((again.framing, again.status), (head.framing, head.status));
            head.framing
        }
    };
    assert_eq!(body(framing, side, rest, piece, &limits), body(framing, side, rest, usize::MAX / 2, &limits));
});
