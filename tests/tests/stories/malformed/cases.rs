//! The table: what is sent, and what becomes of it.
//!
//! Every case names itself in its path, and what it tries to smuggle goes to `/smuggled`.

/// What the mesh does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// It answers this, and no endpoint is asked.
    Refused(u16),
    /// So many requests are answered by the endpoint.
    Served(usize),
}

/// One connection's bytes.
pub struct Case {
    /// What is odd about it.
    pub name: String,
    /// All of them.
    pub bytes: Vec<u8>,
    /// What becomes of it.
    pub want: Want,
    /// Why the mesh serves what nginx or HAProxy refuses.
    pub milder: &'static str,
}

use Want::{Refused, Served};

#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    fn raw(&mut self, name: &str, bytes: &[u8], want: Want) -> &mut Case {
        self.0.push(Case { name: name.to_owned(), bytes: bytes.to_owned(), want, milder: "" });
        self.0.last_mut().expect("it was pushed")
    }

    /// A GET with these lines.
    fn get(&mut self, lines: &str, want: Want) -> &mut Case {
        self.raw(lines, format!("GET /case HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n").as_bytes(), want)
    }

    /// A POST with these lines and this body.
    fn post(&mut self, lines: &str, body: &str, want: Want) -> &mut Case {
        let text = format!("POST /case HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n{body}");
        self.raw(&format!("{lines} | {body}"), text.as_bytes(), want)
    }

    /// A chunked POST.
    fn chunks(&mut self, body: &str, want: Want) -> &mut Case {
        self.post("transfer-encoding: chunked", body, want)
    }

    /// A start line.
    fn start(&mut self, line: &str, want: Want) -> &mut Case {
        self.raw(line, format!("{line}\r\nhost: a\r\n\r\n").as_bytes(), want)
    }
}

const NEXT: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

pub fn cases() -> Vec<Case> {
    let mut table = Table::default();
    lengths(&mut table);
    encodings(&mut table);
    chunks(&mut table);
    lines(&mut table);
    fields(&mut table);
    hosts(&mut table);
    start_lines(&mut table);
    connections(&mut table);
    sizes(&mut table);
    fine(&mut table);
    table.0
}

fn lengths(t: &mut Table) {
    for lines in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "Transfer-Encoding: identity\r\nContent-Length: 5",
        "content-length: 5\r\ntransfer-encoding: xchunked",
        "content-length: 5\r\ntransfer-encoding:\r\n chunked",
        "content-length: 5\r\nTRANSFER-ENCODING: CHUNKED",
    ] {
        t.post(lines, &format!("0\r\n\r\n{NEXT}"), Refused(400));
    }
    for lines in [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 6\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 0\r\ncontent-length: 37",
        "content-length: 5\r\nx: y\r\nCONTENT-LENGTH: 5",
        "content-length: 5, 5",
        "content-length: 5,6",
        "content-length: 5\r\n 6",
    ] {
        t.post(lines, &format!("hello{NEXT}"), Refused(400));
    }
    for value in [
        "",
        "+5",
        "-5",
        "0x5",
        "5a",
        "5 5",
        "5.0",
        "5e0",
        "\"5\"",
        "five",
        "5;q=1",
        "5,",
        ",5",
        "_5",
        "\u{661}",
        "9223372036854775808",
        "18446744073709551616",
        "18446744073709551621",
        "99999999999999999999999999",
    ] {
        t.post(&format!("content-length: {value}"), &format!("hello{NEXT}"), Refused(400));
    }
}

fn encodings(t: &mut Table) {
    for value in [
        "",
        "identity",
        "gzip",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "chunked, identity",
        "identity, chunked",
        "xchunked",
        "chunkedx",
        "\"chunked\"",
        "chunked,",
        ",chunked",
        "chunked;q=1",
        "chunked chunked",
        "chun ked",
        "\u{a0}chunked",
        "chunked\u{a0}",
        "c\u{200b}hunked",
    ] {
        t.post(&format!("transfer-encoding: {value}"), &format!("0\r\n\r\n{NEXT}"), Refused(400));
    }
    for lines in [
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        " transfer-encoding: chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding: \x0bchunked",
        "transfer-encoding: chunked\0",
        "transfer-encoding: chunked\rx: y",
    ] {
        t.post(lines, &format!("0\r\n\r\n{NEXT}"), Refused(400));
    }
    t.raw(
        "chunked in HTTP/1.0",
        format!("POST /case HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{NEXT}")
            .as_bytes(),
        Refused(400),
    );
}

fn chunks(t: &mut Table) {
    for body in [
        "x\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5;\nx\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a=\0\r\nhello\r\n0\r\n\r\n",
        "0\n\n",
        "0\r\n\n",
        "0\r\nx y: z\r\n\r\n",
        "0\r\n x: z\r\n\r\n",
        "0\r\nx : z\r\n\r\n",
        "0\r\nno colon\r\n\r\n",
        "0\r\nx: y\n\r\n",
        "0\r\nx: \0\r\n\r\n",
    ] {
        t.chunks(&format!("{body}{NEXT}"), Refused(400));
    }
}

fn lines(t: &mut Table) {
    for bytes in [
        &b"GET /case HTTP/1.1\nhost: a\r\n\r\n"[..],
        b"GET /case HTTP/1.1\r\nhost: a\n\r\n",
        b"GET /case HTTP/1.1\r\nhost: a\r\n\n",
        b"GET /case HTTP/1.1\nhost: a\n\n",
        b"GET /case HTTP/1.1\r\nhost: a\r\nx: y\nz: w\r\n\r\n",
        b"GET /case HTTP/1.1\rhost: a\r\n\r\n",
        b"GET /case HTTP/1.1\r\nhost: a\rx: y\r\n\r\n",
        b"GET /case HTTP/1.1\r\nhost: a\r\nx: y\r\r\n\r\n",
        b"GET /case HTTP/1.1\r\nhost: a\r\nx\r: y\r\n\r\n",
        b"GET /case\r HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /case HTTP/1.1\r\nhost: a\r\nx: y\n\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /case HTTP/1.1\r\nhost: a\r\nx: y\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        t.raw("lines", bytes, Refused(400));
    }
}

fn fields(t: &mut Table) {
    for lines in [
        "x: y\r\n z",
        "x: y\r\n\tz",
        "x : y",
        "x\t: y",
        ": y",
        "x y: z",
        "x\0: z",
        "x(y): z",
        "x[y]: z",
        "x@y: z",
        "x,y: z",
        "x\"y: z",
        "x/y: z",
        "x{y}: z",
        "no colon",
        "\u{fc}nicode: z",
        "x: y\0z",
        "x: \x0b",
        "x: \x7f",
        "x: \x01",
        "content-length : 5",
        "host : b",
    ] {
        t.get(lines, Refused(400));
    }
    t.raw("a folded first line", b"GET /case HTTP/1.1\r\n host: a\r\n\r\n", Refused(400));
}

fn hosts(t: &mut Table) {
    let mut host = |name: &str, lines: &str| {
        t.raw(name, format!("GET /case HTTP/1.1\r\n{lines}x: y\r\n\r\n").as_bytes(), Refused(400));
    };
    host("no host", "");
    host("two hosts", "host: a\r\nhost: a\r\n");
    host("two hosts that differ", "host: a\r\nHOST: b\r\n");
    for value in [
        "a b", "a/b", "a@b", "a:b", "a:99999", "a:-1", "a:1:2", "a,b", "[::1", "[x]", "[::1]x", ":80", "a?b",
        "a#", "a\\b", "http://a", "\u{e4}",
    ] {
        host(value, &format!("host: {value}\r\n"));
    }
    t.raw("absolute, no host", b"GET http://a/case HTTP/1.1\r\n\r\n", Refused(400));
}

fn start_lines(t: &mut Table) {
    for line in [
        "GET  /case HTTP/1.1",
        "GET /case  HTTP/1.1",
        "GET /case HTTP/1.1 ",
        "GET /case x HTTP/1.1",
        "GET /case\tHTTP/1.1",
        "GET\t/case HTTP/1.1",
        "GET /case",
        "GET /case HTTP/2.0",
        "GET /case HTTP/1.2",
        "GET /case HTTP/0.9",
        "GET /case http/1.1",
        "GET /case HTTP/1.10",
        "GET /case HTTP/01.1",
        "GET /case HTTP/1",
        "GET /case HTTPS/1.1",
        "GET /case\u{0} HTTP/1.1",
        "GET /c\u{e4}se HTTP/1.1",
        "GET /case#x HTTP/1.1",
        "GET case HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ftp://a/case HTTP/1.1",
        "GET http:///case HTTP/1.1",
        "GET http://u@a/case HTTP/1.1",
        "GET http://a:b/case HTTP/1.1",
        "G(T /case HTTP/1.1",
        "G\0T /case HTTP/1.1",
        "CONNECT a HTTP/1.1",
        "CONNECT a: HTTP/1.1",
        "CONNECT /a:1 HTTP/1.1",
        "/case HTTP/1.1",
        " GET /case HTTP/1.1",
    ] {
        t.start(line, Refused(400));
    }
    for bytes in [
        &b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"[..],
        b"\0\0\0\0",
        b"\r\n\r\nGET /case HTTP/1.1\r\nhost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"{\"json\": true}\r\n\r\n",
        b"SSH-2.0-x;y\r\n",
        b"PRI * HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        t.raw("no request", bytes, Refused(400));
    }
}

fn connections(t: &mut Table) {
    for option in ["host", "Content-Length", "close, transfer-encoding", "a b", "a;b", "\"close\""] {
        t.get(&format!("connection: {option}"), Refused(400));
    }
    t.raw(
        "CONNECT with a body",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx",
        Refused(400),
    );
    // The body of a GET is a body.
    t.get("content-length: 37\r\n", Served(1)).bytes =
        format!("GET /case HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{NEXT}", NEXT.len()).into_bytes();
    t.get(
        "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__",
        Served(1),
    );
    t.get("upgrade: h2c\r\nconnection: upgrade", Served(1));
    t.get("connection: x-secret\r\nx-secret: 1", Served(1));
}

fn sizes(t: &mut Table) {
    let long = "a".repeat(40_000);
    t.get(&format!("x: {long}"), Refused(431)).name = "a long value".into();
    t.get(&format!("{long}: x"), Refused(431)).name = "a long name".into();
    t.start(&format!("GET /{long} HTTP/1.1"), Refused(431)).name = "a long path".into();
    let many: Vec<String> = (0..300).map(|n| format!("x{n}: y")).collect();
    t.get(&many.join("\r\n"), Refused(431)).name = "300 headers".into();
    t.chunks(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(20_000)), Refused(400)).name =
        "a long extension of a chunk".into();
}

fn fine(t: &mut Table) {
    t.raw("an empty line first", b"\r\nGET /case HTTP/1.1\r\nhost: a\r\n\r\n", Served(1));
    t.raw("absolute", b"GET http://b/case HTTP/1.1\r\nhost: a\r\n\r\n", Served(1)).milder =
        "the target replaces the header, so its endpoint sees one host (RFC 9112 section 3.2.2)";
    t.raw(
        "two in a row",
        b"GET /case HTTP/1.1\r\nhost: a\r\n\r\nGET /case HTTP/1.1\r\nhost: a\r\n\r\n",
        Served(2),
    );
    t.raw("HTTP/1.0", b"GET /case HTTP/1.0\r\n\r\n", Served(1));
    t.get("x:", Served(1));
    t.get("x:\t y \t", Served(1));
    t.get("x: \u{e4}", Served(1));
    t.get("CONTENT-LENGTH: 0", Served(1));
    t.post("content-length: 005", "hello", Served(1));
    t.post("content-length:5", "hello", Served(1));
    t.post("transfer-encoding: Chunked", "5\r\nhello\r\n0\r\n\r\n", Served(1));
    t.post("transfer-encoding:\tchunked \t", "5\r\nhello\r\n0\r\n\r\n", Served(1)).milder =
        "white space around a value is none of it (RFC 9112 section 5)";
    // Both others take them; nobody needs them, and servers have disagreed about where they end.
    t.chunks("5;a=b\r\nhello\r\n0\r\n\r\n", Refused(400));
    t.chunks("5\r\nhello\r\n0;c\r\n\r\n", Refused(400));
    t.chunks("05\r\nhello\r\n00\r\n\r\n", Served(1));
    t.chunks("A\r\nhellohello\r\n0\r\nx: y\r\n\r\n", Served(1));
    t.chunks(&format!("{:x}\r\n{NEXT}\r\n0\r\n\r\n", NEXT.len()), Served(1));
    t.post(&format!("content-length: {}", NEXT.len()), NEXT, Served(1));
}
