//! Bodies: where they end, what is refused, and the same as a slow reference says.

use super::*;
use Malformed::*;
use proptest::prelude::*;

fn reader(framing: Framing) -> BodyReader {
    BodyReader::new(framing, Side::Client, &Limits { trailer_bytes: 64, ..LIMITS })
}

/// Feeds `input` in pieces; how much was consumed and whether the body ended.
fn feed(framing: Framing, input: &[u8], pieces: &[usize]) -> Result<(usize, bool), ProxyError> {
    let mut reader = reader(framing);
    let mut pieces = pieces.iter().copied().cycle();
    let mut at = 0;
    while at < input.len() && !reader.is_done() {
        let piece = pieces.next().unwrap_or(usize::MAX).clamp(1, input.len() - at);
        let advance = reader.advance(&input[at..at + piece])?;
        assert!(advance.consume == piece || advance.done, "only the end leaves bytes over");
        assert_eq!(advance.done, reader.is_done());
        at += advance.consume;
    }
    Ok((at, reader.is_done()))
}

#[test]
fn lengths() {
    assert!(reader(Framing::None).is_done());
    assert_eq!(feed(Framing::Length(3), b"abcdef", &[6]), Ok((3, true)));
    assert_eq!(feed(Framing::Length(3), b"ab", &[1]), Ok((2, false)));
    assert_eq!(feed(Framing::UntilClose, b"abc", &[2]), Ok((3, false)));
    assert_eq!(feed(Framing::Tunnel, b"abc", &[2]), Ok((3, false)));
}

#[test]
fn where_a_sender_may_close() {
    assert!(reader(Framing::None).may_end());
    assert!(reader(Framing::UntilClose).may_end());
    assert!(reader(Framing::Tunnel).may_end());
    assert!(!reader(Framing::Length(1)).may_end());
    assert!(!reader(Framing::Chunked).may_end());
}

#[track_caller]
fn chunked(body: &str, want: Result<(usize, bool), Malformed>) {
    let want = want.map_err(ProxyError::BadRequest);
    for piece in [1, 2, 3, body.len()] {
        assert_eq!(feed(Framing::Chunked, body.as_bytes(), &[piece]), want, "{body:?} by {piece}");
    }
}

#[test]
fn chunks_and_trailers() {
    for whole in [
        "0\r\n\r\n",
        "000\r\n\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
        "A\r\n0123456789\r\n1\r\n\r\r\n0\r\n\r\n",
        "00000000000000000000000003\r\nabc\r\n0\r\n\r\n",
        "0\r\nx-sum: 1\r\ngrpc-status:0\r\nempty:\r\n\r\n",
        "0\r\na-name-that-is-longer-than-any-forbidden: 1\r\n\r\n",
    ] {
        chunked(whole, Ok((whole.len(), true)));
        chunked(&whole[..whole.len() - 1], Ok((whole.len() - 1, false)));
        chunked(&format!("{whole}GET / HTTP/1.1\r\n"), Ok((whole.len(), true)));
    }
    let many = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(100));
    chunked(&many, Ok((many.len(), true)));
    // The largest size, whose data never ends.
    chunked("7fffffffffffffff\r\nabc", Ok((21, false)));
}

#[test]
fn chunks_that_can_be_read_in_two_ways() {
    for (body, cause) in [
        ("\r\n", ChunkSize),
        ("x\r\n", ChunkSize),
        ("-1\r\n", ChunkSize),
        ("+1\r\n", ChunkSize),
        (" 1\r\n", ChunkSize),
        (";a\r\n", ChunkSize),
        ("0x1\r\n", ChunkSize),
        ("1_0\r\n", ChunkSize),
        ("8000000000000000\r\n", ChunkSize),
        ("fffffffffffffffff\r\n", ChunkSize),
        ("1 \r\n", ChunkExtension),
        ("1\t;a\r\n", ChunkExtension),
        ("1;a=b\r\n", ChunkExtension),
        ("1;\n", ChunkExtension),
        ("1\n", BareLf),
        ("1\ra", BareCr),
        ("000000000000000000000000000000001\r\n", ChunkLine),
        ("1\r\na\r\n\r\n", ChunkSize),
        ("1\r\nab", ChunkEnd),
        ("1\r\na\n", ChunkEnd),
        ("1\r\na\ra", ChunkEnd),
        ("0\r\n\ra", BareCr),
        ("0\r\n\n", BareLf),
        ("0\r\na\r\n", HeaderName),
        ("0\r\na b: c\r\n", SpaceBeforeColon),
        ("0\r\na : c\r\n", SpaceBeforeColon),
        ("0\r\n: c\r\n", HeaderName),
        ("0\r\na: b\r\n c\r\n", ObsFold),
        ("0\r\na: b\n", BareLf),
        ("0\r\na: b\rc", BareCr),
        ("0\r\na: \0", HeaderValue),
        ("0\r\na: \x7f", HeaderValue),
    ] {
        chunked(body, Err(cause));
    }
    for name in ["Content-Length", "Transfer-Encoding", "Host", "connection", "TE", "trailer", "upgrade"] {
        chunked(&format!("0\r\nx: y\r\n{name}: 1\r\n\r\n"), Err(TrailerForbidden));
    }
    chunked(&format!("0\r\nx: {}\r\n\r\n", "y".repeat(59)), Ok((69, true)));
    chunked(&format!("0\r\nx: {}\r\n\r\n", "y".repeat(60)), Err(TrailersTooLarge));
}

/// Decodes a whole chunked body the plain way; its length with all its framing.
fn reference(input: &[u8]) -> Option<usize> {
    let line = |at: usize| {
        input[at..].windows(2).position(|w| w == b"\r\n").map(|n| (&input[at..at + n], at + n + 2))
    };
    let mut at = 0;
    loop {
        let (size, next) = line(at)?;
        let text = str::from_utf8(size)
            .ok()
            .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let size = usize::from_str_radix(text, 16).ok()?;
        at = next;
        if size == 0 {
            break;
        }
        if input.get(at + size..at + size + 2)? != b"\r\n" {
            return None;
        }
        at += size + 2;
    }
    loop {
        let (trailer, next) = line(at)?;
        at = next;
        if trailer.is_empty() {
            return Some(at);
        }
        let (name, _) = str::from_utf8(trailer).ok()?.split_once(": ")?;
        if !name.bytes().all(|b| b.is_ascii_lowercase()) || name.is_empty() {
            return None;
        }
    }
}

fn a_chunked_body() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (prop::collection::vec(any::<u8>(), 1..40), any::<bool>());
    let trailer = ("[a-z]{6,9}", "[ -~]{0,5}");
    (prop::collection::vec(chunk, 0..5), prop::collection::vec(trailer, 0..3)).prop_map(
        |(chunks, trailers)| {
            let mut body = Vec::new();
            for (data, upper) in chunks {
                let size =
                    if upper { format!("{:X}\r\n", data.len()) } else { format!("{:03x}\r\n", data.len()) };
                body.extend_from_slice(size.as_bytes());
                body.extend_from_slice(&data);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n");
            for (name, value) in trailers {
                body.extend_from_slice(format!("x{name}: {value}\r\n").as_bytes());
            }
            body.extend_from_slice(b"\r\n");
            body
        },
    )
}

proptest! {
    #[test]
    fn a_body_ends_where_the_reference_says(
        mut body in a_chunked_body(),
        after in prop::collection::vec(any::<u8>(), 0..8),
        pieces in prop::collection::vec(1usize..9, 1..6),
    ) {
        let length = body.len();
        prop_assert_eq!(reference(&body), Some(length));
        body.extend_from_slice(&after);
        prop_assert_eq!(feed(Framing::Chunked, &body, &pieces), Ok((length, true)));
    }

    #[test]
    fn a_damaged_body_is_never_taken_for_another(
        mut body in a_chunked_body(),
        at in any::<prop::sample::Index>(),
        with in prop::sample::select(&b"\r\n 0;:a\0"[..]),
        pieces in prop::collection::vec(1usize..9, 1..6),
    ) {
        let at = at.index(body.len());
        body[at] = with;
        let whole = feed(Framing::Chunked, &body, &[usize::MAX]);
        prop_assert_eq!(&feed(Framing::Chunked, &body, &pieces), &whole);
        if let Ok((length, true)) = whole {
            // The reference knows only some trailers, so it may refuse more; it must not see another end.
            prop_assert!(reference(&body).is_none_or(|end| end == length));
        }
    }
}
