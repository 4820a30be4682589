//! What accepted heads mean: framing, keep-alive, targets.

use super::*;
use crate::head::Head as _;

#[track_caller]
fn framed(start: &str, lines: &str, framing: Framing, keep_alive: bool) {
    let input = format!("{start}\r\nhost: a\r\n{lines}\r\n");
    let (head, _) = request(input.as_bytes()).unwrap();
    assert_eq!((head.framing, head.keep_alive), (framing, keep_alive), "{input:?}");
}

#[test]
fn a_request_says_where_it_ends_and_what_follows() {
    framed("GET / HTTP/1.1", "", Framing::None, true);
    framed("GET / HTTP/1.1", "connection: close\r\n", Framing::None, false);
    framed("GET / HTTP/1.1", "connection: x\r\nconnection: y , CLOSE\r\n", Framing::None, false);
    framed("GET / HTTP/1.0", "", Framing::None, false);
    framed("GET / HTTP/1.0", "connection: Keep-Alive\r\n", Framing::None, true);
    framed("GET / HTTP/1.0", "connection: keep-alive, close\r\n", Framing::None, false);
    framed("POST / HTTP/1.1", "content-length: 0\r\n", Framing::None, true);
    framed("POST / HTTP/1.1", "content-length:   17\t \r\n", Framing::Length(17), true);
    framed("POST / HTTP/1.0", "content-length: 0017\r\n", Framing::Length(17), false);
    framed("POST / HTTP/1.1", "content-length: 9223372036854775807\r\n", Framing::Length(MAX_LENGTH), true);
    framed("POST / HTTP/1.1", "Transfer-Encoding: Chunked\r\n", Framing::Chunked, true);
    framed("GET / HTTP/1.1", "content-length: 3\r\n", Framing::Length(3), true);
}

#[track_caller]
fn targets(line: &str, host: &str, authority: &str, path: &str) {
    let input = format!("{line} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let (head, _) = request(input.as_bytes()).unwrap();
    assert_eq!((head.authority(), head.path()), (authority, path), "{input:?}");
}

#[test]
fn the_target_says_host_and_path() {
    targets("GET /a/b?c=/d", "shop:8080", "shop:8080", "/a/b");
    targets("GET /?", "", "", "/");
    targets("GET //a/../b%2f|", "[::1]:80", "[::1]:80", "//a/../b%2f|");
    targets("GET http://shop/a?b", "other", "shop", "/a");
    targets("GET HTTP://shop:80", "other", "shop:80", "/");
    targets("GET https://shop?x=/y", "other", "shop", "/");
    targets("OPTIONS *", "a", "a", "*");
    targets("OPTIONS http://shop", "a", "shop", "*");
    targets("CONNECT shop:443", "a", "shop:443", "");
    let old = request(b"GET / HTTP/1.0\r\n\r\n").unwrap().0;
    assert_eq!(old.authority, "");
}

#[test]
fn headers_are_found_in_any_case_and_the_first_counts() {
    let input = get("Host: a\r\nX-A:  1 \r\nx-a: 2\r\nempty:\r\n");
    let (head, _) = request(&input).unwrap();
    assert_eq!(head.header("x-A"), Some(&b"1"[..]));
    assert_eq!(head.header("empty"), Some(&b""[..]));
    assert_eq!(head.header("x-b"), None);
}

#[test]
fn one_message_is_consumed_and_one_empty_line_before_it() {
    let two = b"\r\nGET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    let (head, first) = request(two).unwrap();
    assert_eq!(head.path, "/1");
    assert_eq!(request(&two[first..]).unwrap().0.path, "/2");
}

#[test]
fn expectations_and_upgrades_are_seen() {
    let upgrade = |lines: &str| request(&get(&format!("host: a\r\n{lines}"))).unwrap().0.upgrade;
    assert!(upgrade("connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n"));
    assert!(!upgrade("upgrade: websocket\r\n"), "Connection does not name it");
    assert!(!upgrade("connection: upgrade\r\n"));
    assert!(!upgrade("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: x\r\n"));
    assert!(!upgrade("connection: upgrade\r\nupgrade: websocket, H2C-14\r\n"));
    let old = b"GET / HTTP/1.0\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert!(!request(old).unwrap().0.upgrade, "there is no Upgrade in HTTP/1.0");
    let expect = |lines: &str| request(&get(&format!("host: a\r\n{lines}"))).unwrap().0.expect_continue;
    assert!(expect("expect: 100-Continue\r\ncontent-length: 1\r\n"));
    assert!(!expect("expect: 100-continue\r\n"), "without a body there is nothing to wait with");
}

#[track_caller]
fn answers(start: &str, lines: &str, facts: RequestFacts, framing: Framing, keep_alive: bool, client: bool) {
    let input = format!("{start}\r\n{lines}\r\n");
    let head = response(input.as_bytes(), facts).unwrap();
    assert_eq!(
        (head.framing, head.keep_alive, head.client_keep_alive),
        (framing, keep_alive, client),
        "{input:?}"
    );
}

#[test]
fn a_response_says_where_it_ends_and_what_follows() {
    let head = RequestFacts { method: MethodKind::Head, ..GET };
    let connect = RequestFacts { method: MethodKind::Connect, ..GET };
    let upgrade = RequestFacts { upgrade: true, ..GET };
    let last = RequestFacts { keep_alive: false, ..GET };
    let ok = "HTTP/1.1 200 OK";
    answers(ok, "content-length: 3\r\n", GET, Framing::Length(3), true, true);
    answers(ok, "content-length: 3\r\n", last, Framing::Length(3), true, false);
    answers(ok, "content-length: 0\r\n", GET, Framing::None, true, true);
    answers(ok, "transfer-encoding: chunked\r\n", GET, Framing::Chunked, true, true);
    answers(ok, "connection: close\r\ncontent-length: 3\r\n", GET, Framing::Length(3), false, true);
    answers(ok, "", GET, Framing::UntilClose, false, false);
    answers("HTTP/1.0 200 OK", "", GET, Framing::UntilClose, false, false);
    answers("HTTP/1.0 200 OK", "content-length: 3\r\n", GET, Framing::Length(3), false, true);
    answers(
        "HTTP/1.0 200",
        "content-length: 3\r\nconnection: keep-alive\r\n",
        GET,
        Framing::Length(3),
        true,
        true,
    );
    answers(ok, "content-length: 3\r\n", head, Framing::None, true, true);
    answers(ok, "transfer-encoding: chunked\r\n", head, Framing::None, true, true);
    answers(ok, "", head, Framing::None, true, true);
    answers("HTTP/1.1 304 x", "content-length: 3\r\n", GET, Framing::None, true, true);
    answers("HTTP/1.1 204 x", "", GET, Framing::None, true, true);
    answers("HTTP/1.1 204 x", "content-length: 0\r\n", GET, Framing::None, true, true);
    answers("HTTP/1.1 204 x", "content-length: 3\r\n", GET, Framing::None, false, true);
    answers("HTTP/1.1 204 x", "transfer-encoding: chunked\r\n", GET, Framing::None, false, true);
    answers("HTTP/1.1 100 x", "", GET, Framing::None, true, true);
    answers(
        "HTTP/1.1 101 x",
        "connection: upgrade\r\nupgrade: x\r\n",
        upgrade,
        Framing::Tunnel,
        false,
        false,
    );
    answers(ok, "content-length: 3\r\n", upgrade, Framing::Length(3), true, true);
    answers(ok, "content-length: 3\r\n", connect, Framing::Tunnel, false, false);
    answers("HTTP/1.1 403 x", "content-length: 3\r\n", connect, Framing::Length(3), true, true);
}

#[test]
fn interim_responses_are_told_from_final_ones() {
    let interim = |status: u16| {
        let facts = RequestFacts { upgrade: true, ..GET };
        response(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes(), facts).unwrap().is_interim()
    };
    assert!(interim(100) && interim(103));
    assert!(!interim(101) && !interim(200) && !interim(304));
}
