//! The result does not depend on how the input arrived, and no input makes the codec panic.

use super::*;
use proptest::prelude::*;

/// Everything that the codec says about one request.
type Told = Result<Option<(usize, String)>, ProxyError>;

/// Reads a request that arrives in pieces, as the proxy does.
fn told(input: &[u8], pieces: &[usize]) -> Told {
    let limits = Limits { head_bytes: 256, headers: 6, ..LIMITS };
    let mut scan = HeadScan::new(Side::Client);
    let mut arrived = 0;
    for piece in pieces.iter().copied().cycle() {
        if let Some(end) = scan.end(&input[..arrived], &limits)? {
            let head = parse_request(&input[..end], &limits)?;
            let mut out = Vec::new();
            write_request(
                &head,
                &RequestEdits { request_id: Some("1"), ..RequestEdits::default() },
                &mut out,
            );
            let text = format!(
                "{:?} {:?} {:?} {}",
                head.framing,
                head.keep_alive,
                head.authority,
                out.escape_ascii()
            );
            return Ok(Some((end, text)));
        }
        if arrived == input.len() {
            return Ok(None);
        }
        arrived = input.len().min(arrived + piece.max(1));
    }
    Ok(None)
}

/// Lines that are right, wrong, or wrong together.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("host: shop:80\r\n".to_owned()),
        2 => Just("content-length: 5\r\n".to_owned()),
        1 => Just("transfer-encoding: chunked\r\n".to_owned()),
        2 => Just("connection: close, x-a\r\n".to_owned()),
        1 => Just("connection: upgrade\r\nupgrade: websocket\r\n".to_owned()),
        1 => Just("te: trailers\r\n".to_owned()),
        4 => "x-[a-c]: ?[ -~]{0,12}\r\n",
        1 => "[ -~\r\n]{0,12}\r\n",
        1 => Just("x: y\n".to_owned()),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![
        6 => Just("GET /a?b HTTP/1.1\r\n".to_owned()),
        2 => Just("POST http://other/c HTTP/1.1\r\n".to_owned()),
        1 => Just("\r\nGET / HTTP/1.0\r\n".to_owned()),
        1 => "[ -~\r\n]{0,20}\r\n",
    ];
    (start, prop::collection::vec(line(), 0..8), any::<bool>()).prop_map(|(start, lines, more)| {
        let more = if more { "GET /2 HTTP/1.1\r\nhost: b\r\n\r\n" } else { "" };
        format!("{start}{}\r\n{more}", lines.concat()).into_bytes()
    })
}

/// A damaged message as well as a whole one.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    (message(), damage).prop_map(|(mut bytes, damage)| {
        if let Some((at, with)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = with;
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_head_is_read_the_same_however_it_arrives(
        input in bytes(),
        pieces in prop::collection::vec(1usize..40, 1..6),
    ) {
        prop_assert_eq!(told(&input, &pieces), told(&input, &[usize::MAX]));
        prop_assert_eq!(told(&input, &[1]), told(&input, &[usize::MAX]));
    }

    #[test]
    fn a_head_that_was_accepted_means_the_same_to_the_next_hop(input in bytes()) {
        let Ok(Some(end)) = HeadScan::new(Side::Client).end(&input, &LIMITS) else { return Ok(()) };
        let Ok(head) = parse_request(&input[..end], &LIMITS) else { return Ok(()) };
        let mut out = Vec::new();
        let edits = RequestEdits {
            forwarded_for: Some([127, 0, 0, 1].into()),
            request_id: Some("1"),
            ..RequestEdits::default()
        };
        write_request(&head, &edits, &mut out);
        out.extend_from_slice(b"rest");
        let (again, length) = request(&out).expect("what the writer writes is a request");
        prop_assert_eq!(length, out.len() - 4);
        prop_assert_eq!(again.framing, head.framing);
        prop_assert_eq!(again.method, head.method);
        prop_assert_eq!(again.authority, head.authority);
        prop_assert_eq!(again.path, head.path);
        prop_assert_eq!(again.upgrade, head.upgrade);
    }

    #[test]
    fn no_bytes_make_it_panic(input in prop::collection::vec(any::<u8>(), 0..200), tail in any::<bool>()) {
        let mut input = input;
        if tail {
            input.extend_from_slice(b"\r\n\r\n");
        }
        for side in [Side::Client, Side::Upstream] {
            let _ = HeadScan::new(side).end(&input, &LIMITS);
        }
        let _ = parse_request(&input, &LIMITS);
        let mut response = b"HTTP/1.1 200 ".to_vec();
        response.extend_from_slice(&input);
        if let Ok(head) = parse_response(&response, GET, &LIMITS) {
            write_response(&head, &ResponseEdits { keep_alive: true, client: Version::Http11, headers: None }, &mut Vec::new());
        }
        let _ = BodyReader::new(Framing::Chunked, Side::Client, &LIMITS).advance(&input);
    }
}

#[test]
fn each_byte_is_looked_at_once() {
    // A sender of single bytes: 64 KiB of head would be 2 GiB to look at if each call began anew. The bound is
    // on work, not on time: the scan's own position only rises, to the end of what arrived.
    let input = get(&format!("host: a\r\nx: {}\r\n", "y".repeat(60_000)));
    let mut scan = HeadScan::new(Side::Client);
    for arrived in 1..input.len() {
        assert_eq!(scan.end(&input[..arrived], &LIMITS), Ok(None));
        assert!(scan.scanned_bytes() == arrived);
    }
    assert_eq!(scan.end(&input, &LIMITS), Ok(Some(input.len())));
}
