//! What a head looks like on the next hop, byte by byte.

use super::*;
use crate::route::HeaderEdits;
use std::net::IpAddr;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

#[track_caller]
fn sent(input: &str, edits: &RequestEdits<'_>, want: &str) {
    let (head, _) = request(input.as_bytes()).unwrap();
    let mut out = b"before ".to_vec();
    write_request(&head, edits, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), format!("before {want}"), "{input:?}");
    // What is sent must be accepted by the next proxy, and mean the same.
    let (again, _) = request(want.as_bytes()).unwrap();
    assert_eq!((again.framing, again.authority, again.path), (head.framing, head.authority, head.path));
}

#[track_caller]
fn answered(input: &str, facts: RequestFacts, keep_alive: bool, want: &str) {
    let head = response(input.as_bytes(), facts).unwrap();
    let mut out = Vec::new();
    write_response(&head, &ResponseEdits { keep_alive, client: facts.version, headers: None }, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), want, "{input:?}");
}

#[test]
fn a_head_without_edits_is_copied_as_it_is() {
    let plain =
        "GET /a?b HTTP/1.1\r\nHost:  Shop:80 \r\nX-A:1\r\nTraceParent: 00-ab-cd-01\r\nx-a:\t2\r\n\r\n";
    sent(plain, &RequestEdits::default(), plain);
    sent(&format!("\r\n{plain}"), &RequestEdits::default(), plain);
}

#[test]
fn what_belongs_to_one_connection_is_left_out() {
    sent(
        "POST / HTTP/1.1\r\nConnection: close, x-secret, X-Forwarded-For\r\nhost: a\r\nKeep-Alive: timeout=5\r\n\
         X-Secret: 1\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: x\r\nProxy-Status: y\r\nx-a: 1\r\n\
         upgrade: h2c\r\nhttp2-settings: z\r\nX-SECRET: 2\r\nx-forwarded-for: 1.1.1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        &RequestEdits::default(),
        "POST / HTTP/1.1\r\nhost: a\r\nProxy-Status: y\r\nx-a: 1\r\nx-forwarded-for: 1.1.1.1\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
}

#[test]
fn trailers_are_still_asked_for_and_other_codings_are_not() {
    let edits = RequestEdits::default();
    sent(
        "GET / HTTP/1.1\r\nTE: gzip, trailers\r\nhost: a\r\nconnection: te\r\n\r\n",
        &edits,
        "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n",
    );
    sent("GET / HTTP/1.1\r\nTE: gzip\r\nhost: a\r\n\r\n", &edits, "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
}

#[test]
fn an_upgrade_that_is_offered_goes_on() {
    sent(
        "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nsec-x: y\r\n\r\n",
        &RequestEdits::default(),
        "GET /chat HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\nsec-x: y\r\nconnection: upgrade\r\n\r\n",
    );
}

#[test]
fn the_client_is_appended_to_the_last_list() {
    let edits = RequestEdits { forwarded_for: Some(CLIENT), ..RequestEdits::default() };
    sent(
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        &edits,
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.1.2.3\r\n\r\n",
    );
    sent(
        "GET / HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\nhost: a\r\nX-Forwarded-For: 2.2.2.2, 3.3.3.3  \r\nb: c\r\n\r\n",
        &edits,
        "GET / HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\nhost: a\r\nX-Forwarded-For: 2.2.2.2, 3.3.3.3, 10.1.2.3\r\nb: c\r\n\r\n",
    );
    sent(
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for:\r\n\r\n",
        &edits,
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.1.2.3\r\n\r\n",
    );
    let six = RequestEdits { forwarded_for: Some("fd00::1".parse().unwrap()), ..RequestEdits::default() };
    sent(
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        &six,
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: fd00::1\r\n\r\n",
    );
}

#[test]
fn a_request_without_an_id_gets_one() {
    let edits = RequestEdits { request_id: Some("id-1"), ..RequestEdits::default() };
    let with = "GET / HTTP/1.1\r\nhost: a\r\nx-request-id: id-1\r\n\r\n";
    sent("GET / HTTP/1.1\r\nhost: a\r\n\r\n", &edits, with);
    sent("GET / HTTP/1.1\r\nx-request-id: \r\nhost: a\r\n\r\n", &edits, with);
    let own = "GET / HTTP/1.1\r\nX-Request-ID: mine\r\nhost: a\r\n\r\n";
    sent(own, &edits, own);
}

#[test]
fn an_absolute_target_becomes_its_path_and_host_its_authority() {
    let edits = RequestEdits::default();
    let want = "GET /a?b HTTP/1.1\r\nhost: shop:80\r\nx: y\r\nz: w\r\n\r\n";
    sent("GET http://shop:80/a?b HTTP/1.1\r\nx: y\r\nHost: other\r\nz: w\r\n\r\n", &edits, want);
    sent(
        "GET http://shop?b HTTP/1.1\r\nHost: other\r\n\r\n",
        &edits,
        "GET /?b HTTP/1.1\r\nhost: shop\r\n\r\n",
    );
    sent(
        "GET http://shop HTTP/1.0\r\n\r\n",
        &edits,
        "GET / HTTP/1.0\r\nhost: shop\r\nconnection: keep-alive\r\n\r\n",
    );
    sent(
        "OPTIONS http://shop HTTP/1.1\r\nHost: x\r\n\r\n",
        &edits,
        "OPTIONS * HTTP/1.1\r\nhost: shop\r\n\r\n",
    );
}

#[test]
fn connection_is_said_anew_for_the_endpoint() {
    let close = RequestEdits { close: true, ..RequestEdits::default() };
    sent(
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        &close,
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    sent(
        "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
        &close,
        "GET / HTTP/1.0\r\nhost: a\r\nconnection: close\r\n\r\n",
    );
    let open = RequestEdits::default();
    sent("GET / HTTP/1.0\r\n\r\n", &open, "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
}

#[test]
fn a_response_goes_on_as_http_1_1() {
    let plain = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n";
    answered(plain, GET, true, plain);
    answered(
        "HTTP/1.0 404 Not  Found\r\nConnection: close, x-b\r\ncontent-length: 3\r\nX-B: 1\r\nKeep-Alive: x\r\nupgrade: h2\r\n\r\n",
        GET,
        true,
        "HTTP/1.1 404 Not  Found\r\ncontent-length: 3\r\n\r\n",
    );
    answered("HTTP/1.1 200\r\n\r\n", GET, false, "HTTP/1.1 200 \r\nconnection: close\r\n\r\n");
    let old = RequestFacts { version: Version::Http10, ..GET };
    answered(
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        old,
        true,
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\n",
    );
}

#[test]
fn responses_without_a_body_do_not_announce_one() {
    answered("HTTP/1.1 204 x\r\ncontent-length: 3\r\n\r\n", GET, true, "HTTP/1.1 204 x\r\n\r\n");
    answered("HTTP/1.1 100 Continue\r\n\r\n", GET, false, "HTTP/1.1 100 Continue\r\n\r\n");
    let head = RequestFacts { method: MethodKind::Head, ..GET };
    let kept = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n";
    answered(kept, head, true, kept);
    let upgrade = RequestFacts { upgrade: true, ..GET };
    answered(
        "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nx: y\r\n\r\n",
        upgrade,
        false,
        "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nx: y\r\nconnection: upgrade\r\n\r\n",
    );
    let connect = RequestFacts { method: MethodKind::Connect, ..GET };
    answered("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", connect, false, "HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn a_refusal_names_its_cause() {
    let mut out = Vec::new();
    write_error(&ProxyError::NoRoute, true, false, &mut out);
    let body = "no route of this service matches the request's host and path\n";
    let head = format!(
        "HTTP/1.1 404 Not Found\r\nx-mesh-reason: no_route\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: keep-alive\r\n\r\n",
        body.len()
    );
    assert_eq!(String::from_utf8(out).unwrap(), format!("{head}{body}"));
}

#[test]
fn every_refusal_is_a_response_that_fits() {
    for error in ProxyError::ALL {
        for head_request in [false, true] {
            let mut out = Vec::new();
            write_error(&error, false, head_request, &mut out);
            let end = HeadScan::new(Side::Upstream).end(&out, &LIMITS).unwrap().unwrap();
            let head = parse_response(&out[..end], GET, &LIMITS).unwrap();
            let body = format!("{error}\n");
            assert_eq!((head.status, head.keep_alive), (error.status(), false));
            assert_eq!(head.framing, Framing::Length(body.len() as u64));
            assert_eq!(head.header("x-mesh-reason"), Some(error.reason().as_bytes()));
            assert_eq!(&out[end..], if head_request { b"" } else { body.as_bytes() });
        }
    }
}

#[test]
fn what_is_taken_out_is_neither_seen_nor_sent_and_lines_are_added() {
    let input =
        "GET / HTTP/1.1\r\nhost: a\r\nX-Roles: root\r\nx_roles: root\r\nx-role: 1\r\nX-ROLES: 2\r\n\r\n";
    let (mut head, _) = request(input.as_bytes()).unwrap();
    assert!(head.remove("x-roles") && !head.remove("x-user"));
    let mut seen = Vec::new();
    crate::authorise::Headers::each(&head, &mut |name, _| {
        seen.push(String::from_utf8_lossy(name).into_owned());
    });
    assert_eq!(seen, ["host", "x-role"]);
    let mut out = Vec::new();
    write_request(&head, &RequestEdits { lines: b"x-roles: admin\r\n", ..RequestEdits::default() }, &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "GET / HTTP/1.1\r\nhost: a\r\nx-role: 1\r\nx-roles: admin\r\n\r\n"
    );
}

fn lines(lines: &[(&str, &str)]) -> Vec<crate::route::Line> {
    lines.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

#[test]
fn a_route_edits_headers_host_and_path() {
    let headers = HeaderEdits::new(
        lines(&[("x-a", "set"), ("X-Request-Id", "7")]),
        lines(&[("x-b", "2")]),
        vec!["x-forwarded-for".into()],
    );
    let edits = RequestEdits {
        path: Some(("/new", "/rest")),
        host: Some("backend.example"),
        headers: Some(&headers),
        ..RequestEdits::default()
    };
    let write = |input: &str| {
        let (head, _) = request(input.as_bytes()).unwrap();
        let mut out = Vec::new();
        write_request(&head, &edits, &mut out);
        String::from_utf8(out).unwrap()
    };
    let edited = "host: backend.example\r\nx-b: 1\r\nx-a: set\r\nX-Request-Id: 7\r\nx-b: 2\r\n\r\n";
    assert_eq!(
        write(
            "GET /old/rest?q=1&r HTTP/1.1\r\nX-A: 1\r\nHost: shop\r\nx-b: 1\r\nx-request-id: 3\r\nx-a: 2\r\n\
             X-Forwarded-For: 1.1.1.1\r\n\r\n"
        ),
        format!("GET /new/rest?q=1&r HTTP/1.1\r\n{edited}")
    );
    assert_eq!(
        write("GET http://shop/old/rest HTTP/1.1\r\nHost: other\r\nx-b: 1\r\n\r\n"),
        format!("GET /new/rest HTTP/1.1\r\n{edited}")
    );
    assert_eq!(
        write("OPTIONS * HTTP/1.1\r\nhost: shop\r\nx-b: 1\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\n{edited}"),
        "what names no path keeps it"
    );
    let path = RequestEdits { path: Some(("/", "")), ..RequestEdits::default() };
    sent_as(
        "GET /a?b HTTP/1.1\r\nHost: Shop\r\nx: 1\r\n\r\n",
        &path,
        "GET /?b HTTP/1.1\r\nHost: Shop\r\nx: 1\r\n\r\n",
    );
}

#[track_caller]
fn sent_as(input: &str, edits: &RequestEdits<'_>, want: &str) {
    let (head, _) = request(input.as_bytes()).unwrap();
    let mut out = Vec::new();
    write_request(&head, edits, &mut out);
    assert_eq!(String::from_utf8(out).unwrap(), want);
}

#[test]
fn a_route_edits_headers_of_responses_but_never_their_framing() {
    let edits = HeaderEdits::new(
        lines(&[("server", "mesh")]),
        lines(&[("x-a", "1")]),
        vec!["x-secret".into(), "content-length".into()],
    );
    let input = "HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 2\r\nX-Secret: s\r\n\r\n";
    let head = response(input.as_bytes(), GET).unwrap();
    let mut out = Vec::new();
    let edits = ResponseEdits { keep_alive: true, client: Version::Http11, headers: Some(&edits) };
    write_response(&head, &edits, &mut out);
    let want = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nserver: mesh\r\nx-a: 1\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), want);
}

#[test]
fn a_redirect_has_no_body() {
    let mut out = Vec::new();
    write_redirect(301, true, |out| out.extend_from_slice(b"http://b/"), &mut out);
    let want = "HTTP/1.1 301 Moved Permanently\r\nlocation: http://b/\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), want);
}
