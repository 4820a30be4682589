//! What a client speaks, by what it begins with, where its port does not say (`protocol: auto`).
//!
//! HTTP/1 is a whole request line that ends in its version; what begins like one and is not yet whole is waited for,
//! longer where it can hardly be anything else. HTTP/2 is its preface. All else is opaque, TLS among it.
//!
//! Invariant: what is no beginning of HTTP any more is opaque at once.
//! Not here: how long is waited, and servers that speak first (the agent's path).

/// What HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a request line; longer ones are opaque, but where nothing else begins like them.
const LINE_MOST: usize = 8 * 1024;
/// Bytes of a method.
const METHOD_MOST: usize = 24;

const KNOWN: [&[u8]; 9] =
    [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"];

/// What a client begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Too little as yet. `likely`: it can hardly be anything but HTTP/1.
    More {
        /// See above.
        likely: bool,
    },
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// A handshake of TLS.
    Tls,
    /// Anything else.
    Opaque,
}

/// Reads what a client has sent so far.
pub fn beginning(bytes: &[u8]) -> Beginning {
    const MORE: Beginning = Beginning::More { likely: false };
    let compared = bytes.len().min(PREFACE.len());
    if compared > 0 && bytes[..compared] == PREFACE[..compared] {
        return if compared == PREFACE.len() { Beginning::Http2 } else { MORE };
    }
    match bytes {
        [] | [22] => MORE,
        [22, 3, ..] => Beginning::Tls,
        _ => request_line(bytes),
    }
}

fn request_line(bytes: &[u8]) -> Beginning {
    let token = |b: &u8| b.is_ascii_uppercase() || *b == b'-' || *b == b'_';
    let length = bytes.iter().take_while(|b| token(b)).count();
    if length == 0 || length > METHOD_MOST {
        return Beginning::Opaque;
    }
    let (method, rest) = bytes.split_at(length);
    let target = match rest {
        [] => return Beginning::More { likely: false },
        [b' ', target @ ..] => target,
        _ => return Beginning::Opaque,
    };
    let Some(end) = target.iter().position(|b| *b == b'\n') else {
        let likely = KNOWN.contains(&method) && is_target(method, target);
        let plain = target.iter().all(|b| (b' '..=b'~').contains(b) || *b == b'\r');
        return match plain && (likely || bytes.len() < LINE_MOST) {
            // Longer than any line should be: HTTP says so to its client.
            true if bytes.len() >= LINE_MOST => Beginning::Http1,
            true => Beginning::More { likely },
            false => Beginning::Opaque,
        };
    };
    let line = &target[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.len().checked_sub(b" HTTP/1.1".len()).map(|at| &line[at..]);
    match version {
        Some([b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', digit]) if digit.is_ascii_digit() => {
            Beginning::Http1
        }
        _ => Beginning::Opaque,
    }
}

/// Begins the target of a request so?
fn is_target(method: &[u8], target: &[u8]) -> bool {
    let begins = |with: &[u8]| target.len() >= with.len() && target.starts_with(with);
    begins(b"/") || begins(b"http://") || begins(b"https://") || method == b"OPTIONS" && begins(b"*")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], want: Beginning) {
        assert_eq!(beginning(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        // Whatever comes piece by piece comes to the same, and nothing is said that has to be taken back.
        let decided =
            (0..=bytes.len()).map(|n| beginning(&bytes[..n])).find(|b| !matches!(b, Beginning::More { .. }));
        if !matches!(want, Beginning::More { .. }) {
            assert_eq!(decided, Some(want), "{:?} in pieces", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn http_is_known_by_its_first_line() {
        use Beginning::*;
        check(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", Http1);
        check(b"GET /a?b=c HTTP/1.0\n", Http1);
        check(b"M-SEARCH * HTTP/1.1\r\n", Http1);
        check(b"CONNECT a:80 HTTP/1.1\r\n", Http1);
        check(PREFACE, Http2);
        check(b"\x16\x03\x01\x02\x00\x01", Tls);
    }

    #[test]
    fn what_only_looks_like_it_is_opaque() {
        use Beginning::Opaque;
        let others: &[&[u8]] = &[
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"SET key value\r\n",
            b"GET key\r\n",
            b"get key\r\n",
            b"EHLO example\r\n",
            b"HELO\r\n",
            b"CONNECT {\"verbose\":false}\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"USER anonymous\r\n",
            b"PRI * HTTP/2.0\r\n\r\nXX",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"\x16\x02\x00",
            b" GET / HTTP/1.1\r\n",
            b"\r\nGET / HTTP/1.1\r\n",
            b"GET /\x01 HTTP/1.1",
            b"GET / HTTP/2.0\r\n",
            b"GET /\r\n",
            b"{\"a\": 1}",
        ];
        for bytes in others {
            check(bytes, Opaque);
        }
        check(&[b'A'; METHOD_MOST + 1], Opaque);
        check(&[b"HELLO ", &[b'a'; LINE_MOST][..]].concat(), Opaque);
    }

    #[test]
    fn what_is_not_whole_is_waited_for() {
        let more = |likely| Beginning::More { likely };
        check(b"", more(false));
        check(b"GE", more(false));
        check(b"GET ", more(false));
        check(b"GET k", more(false));
        check(b"PRI * HT", more(false));
        check(b"\x16", more(false));
        check(b"GET /", more(true));
        check(b"POST http://a/", more(true));
        check(b"OPTIONS *", more(true));
        check(b"HELLO /", more(false));
        check(&[b"GET /", &[b'a'; LINE_MOST][..]].concat(), Beginning::Http1);
    }
}
