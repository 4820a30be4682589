//! Every shape that is refused, and the cause that the refusal names.

use super::*;
use Malformed::*;

#[track_caller]
fn refused(input: &[u8], cause: Malformed) {
    let want = ProxyError::malformed(Side::Client, cause);
    assert_eq!(request(input).map(|_| ()), Err(want), "{}", input.escape_ascii());
}

#[track_caller]
fn refused_lines(lines: &str, cause: Malformed) {
    refused(&get(&format!("host: a\r\n{lines}")), cause);
}

#[track_caller]
fn refused_response(input: &str, facts: RequestFacts, cause: Malformed) {
    let got = response(input.as_bytes(), facts).map(|_| ());
    assert_eq!(got, Err(ProxyError::UpstreamProtocol(cause)), "{input:?}");
}

#[test]
fn lengths_that_can_be_read_in_two_ways() {
    refused_lines("content-length: 5\r\ntransfer-encoding: chunked\r\n", LengthAndEncoding);
    refused_lines("transfer-encoding: chunked\r\ncontent-length: 0\r\n", LengthAndEncoding);
    refused_lines("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", LengthAndEncoding);
    refused_lines("content-length: 5\r\ncontent-length: 6\r\n", LengthRepeated);
    refused_lines("content-length: 5\r\ncontent-length: 5\r\n", LengthRepeated);
    refused_lines("content-length: 5\r\nx: y\r\nCONTENT-LENGTH: 5\r\n", LengthRepeated);
}

#[test]
fn lengths_that_are_no_numbers() {
    for value in [
        "",
        "+5",
        "-5",
        "5, 5",
        "5,5",
        "0x5",
        "5a",
        "5 5",
        "5.0",
        "9223372036854775808",
        "18446744073709551617",
        "١",
    ] {
        refused_lines(&format!("content-length: {value}\r\n"), LengthInvalid);
    }
}

#[test]
fn encodings_other_than_chunked_once() {
    for value in ["", "identity", "gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", "chunked;q=1"]
    {
        refused_lines(&format!("transfer-encoding: {value}\r\n"), EncodingUnsupported);
    }
    for value in ["xchunked", "\"chunked\"", "chunked,", ",chunked", "chunked\u{a0}"] {
        refused_lines(&format!("transfer-encoding: {value}\r\n"), EncodingUnsupported);
    }
    refused_lines("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", EncodingUnsupported);
    refused_lines("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", EncodingUnsupported);
    refused(b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n", EncodingInHttp10);
}

#[test]
fn lines_that_do_not_end_in_crlf() {
    refused(b"GET / HTTP/1.1\nhost: a\r\n\r\n", BareLf);
    refused(b"GET / HTTP/1.1\r\nhost: a\n\r\n", BareLf);
    refused(b"GET / HTTP/1.1\r\nhost: a\r\n\n", BareLf);
    refused(b"GET / HTTP/1.1\r\nhost: a\r\nx: y\nz: w\r\n\r\n", BareLf);
    refused(b"GET / HTTP/1.1\rhost: a\r\n\r\n", BareCr);
    refused(b"GET / HTTP/1.1\r\nhost: a\rx: y\r\n\r\n", BareCr);
    refused(b"GET / HTTP/1.1\r\nhost: a\r\nx: y\r\r\n\r\n", BareCr);
    refused(b"GET / HTTP/1.1\r\nhost: a\r\nx\r: y\r\n\r\n", BareCr);
    refused(b"GET /\r HTTP/1.1\r\nhost: a\r\n\r\n", BareCr);
}

#[test]
fn a_parser_that_was_not_preceded_by_the_scan_refuses_them_too() {
    for input in [
        &b"GET / HTTP/1.1\nhost: a\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nhost: a\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: y\nz: w\r\n\r\n",
    ] {
        let got = parse_request(input, &LIMITS).map(|_| ());
        assert_eq!(got, Err(ProxyError::BadRequest(BareLf)), "{}", input.escape_ascii());
    }
    for input in [&b"\n\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"GET / HTTP/1.1\r\nhost: a\r\n", b""] {
        assert_eq!(parse_request(input, &LIMITS).map(|_| ()), Err(ProxyError::BadRequest(StartLine)));
        assert!(parse_response(input, GET, &LIMITS).is_err());
    }
}

#[test]
fn header_lines_that_are_folded_or_misspelt() {
    refused_lines("x: y\r\n z\r\n", ObsFold);
    refused_lines("x: y\r\n\tz\r\n", ObsFold);
    refused(b"GET / HTTP/1.1\r\n host: a\r\n\r\n", ObsFold);
    refused_lines("content-length : 5\r\n", SpaceBeforeColon);
    refused_lines("transfer-encoding\t: chunked\r\n", SpaceBeforeColon);
    refused_lines(": y\r\n", HeaderName);
    refused_lines("x y: z\r\n", HeaderName);
    refused_lines("x\0: z\r\n", HeaderName);
    refused_lines("x(y): z\r\n", HeaderName);
    refused_lines("ünicode: z\r\n", HeaderName);
    refused_lines("no colon\r\n", HeaderName);
    refused_lines("x: y\0\r\n", HeaderValue);
    refused_lines("x: \x0b\r\n", HeaderValue);
    refused_lines("x: \x7f\r\n", HeaderValue);
}

#[test]
fn hosts() {
    refused(&get(""), HostMissing);
    refused(&get("host: a\r\nhost: a\r\n"), HostRepeated);
    refused(&get("host: a\r\nHOST: b\r\n"), HostRepeated);
    for host in [
        "a b", "a/b", "a@b", "a:b", "a:99999", "a:-1", "a:1:2", "a,b", "[::1", "[x]", "[::1]x", ":80", "ä",
        "a?b", "a#",
    ] {
        refused(&get(&format!("host: {host}\r\n")), HostInvalid);
    }
    // Also where the target would replace it.
    refused(b"GET http://a/ HTTP/1.1\r\n\r\n", HostMissing);
}

#[test]
fn start_lines() {
    let host = "host: a\r\n\r\n";
    let check = |line: &str, cause| refused(format!("{line}\r\n{host}").as_bytes(), cause);
    check("GET  / HTTP/1.1", StartLine);
    check("GET / HTTP/1.1 ", StartLine);
    check("GET /a b HTTP/1.1", Version);
    check("GET /\tHTTP/1.1", StartLine);
    check("GET /", StartLine);
    check("GET / HTTP/2.0", Version);
    check("GET / HTTP/1.2", Version);
    check("GET / http/1.1", Version);
    check("GET / HTTP/1.10", StartLine);
    check("GET /\u{0} HTTP/1.1", StartLine);
    check("GET /ä HTTP/1.1", Target);
    check("GET /a#b HTTP/1.1", Target);
    check("GET a HTTP/1.1", Target);
    check("GET * HTTP/1.1", Target);
    check("GET ftp://a/ HTTP/1.1", Target);
    check("GET http:///a HTTP/1.1", Target);
    check("GET http://u@a/ HTTP/1.1", Target);
    check("CONNECT a HTTP/1.1", Target);
    check("CONNECT a: HTTP/1.1", Target);
    check("CONNECT /a:1 HTTP/1.1", Target);
    refused(b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n", ConnectBody);
}

#[test]
fn bytes_that_are_not_http_are_refused_before_a_line_is_complete() {
    let long = [b'a'; 40];
    for input in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"\x00",
        b" GET /",
        b"(x",
        b"\n",
        b"\r\n\r\n",
        b"\rx",
        b"GET\n",
        b"SSH-2.0;x",
        &long,
    ] {
        let got = HeadScan::new(Side::Client).end(input, &LIMITS);
        assert_eq!(got, Err(ProxyError::NotHttp), "{}", input.escape_ascii());
    }
    for input in [&b"220 mail ESMTP\r\n"[..], b"\r\n", b"http/1.1 200 OK", b"HTTX"] {
        let got = HeadScan::new(Side::Upstream).end(input, &LIMITS);
        assert_eq!(got, Err(ProxyError::UpstreamProtocol(NotHttp)), "{}", input.escape_ascii());
    }
}

#[test]
fn connection_options_that_hide_what_matters() {
    for option in ["host", "Content-Length", "close, transfer-encoding", "a b", "a;b", "\"close\""] {
        refused_lines(&format!("connection: {option}\r\n"), Connection);
    }
    refused_lines(&format!("connection: {}\r\n", ["x"; 17].join(",")), Connection);
}

#[test]
fn heads_over_a_limit() {
    let limits = Limits { head_bytes: 64, headers: 2, ..LIMITS };
    let end = |input: &str| HeadScan::new(Side::Client).end(input.as_bytes(), &limits);
    let fits = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(37));
    assert_eq!((fits.len(), end(&fits)), (64, Ok(Some(64))));
    assert_eq!(end(&fits[..63]), Ok(None));
    let over = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(38));
    assert_eq!(end(&over), Err(ProxyError::HeadTooLarge));
    assert_eq!(end(&over[..64]), Err(ProxyError::HeadTooLarge));
    assert_eq!(end("GET / HTTP/1.1\r\na:\r\nb:\r\n\r\n"), Ok(Some(26)));
    assert_eq!(end("GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\n"), Err(ProxyError::HeadTooLarge));
    let whole = get("host: a\r\na:\r\nb:\r\n");
    assert_eq!(parse_request(&whole, &limits).map(|_| ()), Err(ProxyError::HeadTooLarge));
}

#[test]
fn responses_that_can_be_read_in_two_ways() {
    let with = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
    refused_response(&with("content-length: 1\r\ntransfer-encoding: chunked\r\n"), GET, LengthAndEncoding);
    refused_response(&with("content-length: 1\r\ncontent-length: 1\r\n"), GET, LengthRepeated);
    refused_response(&with("content-length: x\r\n"), GET, LengthInvalid);
    refused_response(&with("transfer-encoding: gzip, chunked\r\n"), GET, EncodingUnsupported);
    refused_response(&with("x : y\r\n"), GET, SpaceBeforeColon);
    refused_response(&with("x: y\r\n z\r\n"), GET, ObsFold);
    refused_response("HTTP/1.1 200 OK\nx: y\r\n\r\n", GET, BareLf);
    refused_response("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", GET, EncodingInHttp10);
    refused_response("HTTP/1.1 20 OK\r\n\r\n", GET, Status);
    refused_response("HTTP/1.1 099 OK\r\n\r\n", GET, Status);
    refused_response("HTTP/1.1 600 OK\r\n\r\n", GET, Status);
    refused_response("HTTP/1.1 2000 OK\r\n\r\n", GET, Status);
    refused_response("HTTP/2 200 OK\r\n\r\n", GET, Version);
    refused_response("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", GET, UpgradeUnasked);
    refused_response("HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\n", GET, InterimBody);
    let old = RequestFacts { version: super::Version::Http10, ..GET };
    refused_response(&with("transfer-encoding: chunked\r\n"), old, EncodingInHttp10);
}
