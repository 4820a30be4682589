//! Peers that are not ours: OpenSSL's TLS with hyper-h2 over it, and `openssl s_client`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::SystemTime;

use mesh_core::error::ProxyError;
use mesh_identity::maker::{Authority, Leaf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::super::Limits;
use super::super::client::Via;
use super::rig::*;

/// Certificate, key and root as files.
struct Files(tempfile::TempDir);

impl Files {
    fn new(root: &Authority, issuer: &Authority, leaf: &Leaf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = issuer.issue(leaf);
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("root.pem", root.pem.clone());
        write("cert.pem", made.pem);
        write("key.pem", made.key.serialize_pem());
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

/// A program in Python, and what it prints.
struct Foreign {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Foreign {
    fn start(script: &str, args: &[&str]) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", script]).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 runs (Debian: python3, python3-h2)");
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn client(ip: Ipv4Addr, files: &Files, mode: &str, authority: &str) -> Self {
        Self::start(include_str!("client.py"), &[&ip.to_string(), files.path(), mode, authority])
    }

    fn server(ip: Ipv4Addr, files: &Files, mode: &str) -> Self {
        let mut server = Self::start(include_str!("server.py"), &[&ip.to_string(), files.path(), mode]);
        assert_eq!(server.line(), "listening");
        server
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn rest(&mut self) -> Vec<String> {
        let mut all = String::new();
        self.lines.read_to_string(&mut all).unwrap();
        all.lines().map(str::to_owned).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn files(root: &Authority, id: &str) -> Files {
    Files::new(root, root, &Leaf::of(id, SystemTime::now()))
}

fn echo() -> impl FnOnce(std::net::TcpListener) {
    each(|mut socket| {
        let mut writer = socket.try_clone().unwrap();
        let _ = std::io::copy(&mut socket, &mut writer);
    })
}

#[test]
fn a_foreign_caller_is_served() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), echo());
    let files = files(&root, PAY);
    let mut client = Foreign::client(called.ip, &files, "echo", &called.application.to_string());
    // The status alone: no other header.
    assert_eq!(client.rest(), ["status 200 1", "back 1048576 StreamEnded"]);
    called.eventually("it has gone", |counts| counts.streams == [0, 0] && counts.tunnels == [0, 0]);
}

#[test]
fn what_a_foreign_caller_must_not_ask_for_is_refused_and_the_tunnel_stays() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), echo());
    let files = files(&root, PAY);
    let good = called.application.to_string();
    let own = called.ip;
    let asked = format!("{good},{own}:15008,10.1.1.1:80,{own},nobody.default.svc.cluster.local:80,{own}:1");
    let mut client = Foreign::client(own, &files, "ask", &asked);
    let answers: Vec<String> =
        client.rest().iter().map(|line| line.rsplit_once(' ').unwrap().1.to_owned()).collect();
    assert_eq!(answers, ["200", "503", "400", "400", "503", "503", "400", "431", "200"]);
    let refused = [
        ("not_connect", 1),
        ("bad_authority", 1),
        ("foreign_address", 1),
        ("unknown_host", 1),
        ("reserved_port", 1),
        ("unreachable", 1),
    ];
    assert_eq!(called.proxy.tunnels().refused, refused);
}

#[test]
fn a_foreign_callers_end_is_the_applications() {
    let root = authority();
    let (told, hear) = std::sync::mpsc::channel();
    let told = parking_lot::Mutex::new(told);
    let called = Called::new(
        &root,
        Limits::default(),
        each(move |mut socket| {
            let end = socket.read(&mut [0; 10]).map_err(|e| e.kind());
            let _ = told.lock().send(end);
        }),
    );
    let files = files(&root, PAY);
    for mode in ["reset", "drop"] {
        let mut client = Foreign::client(called.ip, &files, mode, &called.application.to_string());
        assert_eq!(client.line(), "status 200");
        let _ = client.rest();
        let end = hear.recv_timeout(SOON).unwrap();
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{mode}");
    }
}

#[test]
fn an_applications_reset_is_told_as_connect_error() {
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|mut socket| {
            socket.write_all(b"x").unwrap();
            std::thread::park_timeout(std::time::Duration::from_millis(200));
            rustix::net::sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO)).unwrap();
        }),
    );
    let files = files(&root, PAY);
    let mut client = Foreign::client(called.ip, &files, "wait", &called.application.to_string());
    assert_eq!(client.line(), "status 200");
    assert_eq!(client.line(), "DataReceived");
    // CONNECT_ERROR.
    assert_eq!(client.line(), "StreamReset 10");
}

/// Calls a foreign server: what `test` is given opens connections to it.
fn calling(mode: &str, test: impl AsyncFnOnce(Caller, Via, &mut Foreign)) {
    let root = authority();
    let ip = own_ip();
    let files = files(&root, CART);
    let mut server = Foreign::server(ip, &files, mode);
    let via = Via {
        address: (ip, 15_008).into(),
        authority: (Ipv4Addr::new(10, 0, 0, 7), 8080).into(),
        expected: [CART.parse().unwrap()].into(),
        workload: "default/cart".into(),
    };
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        test(caller, via, &mut server).await;
    });
}

#[test]
fn a_foreign_server_is_called() {
    calling("echo", async |caller, via, server| {
        for _ in 0..2 {
            let stream = caller.open(via.clone()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let writer = tokio::task::spawn_local(async move {
                write.write_all(&vec![b'x'; 3 << 20]).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut back = Vec::new();
            read.read_to_end(&mut back).await.unwrap();
            assert_eq!(back.len(), 3 << 20);
            writer.await.unwrap();
        }
        assert_eq!(server.line(), format!("tunnel 1 TLSv1.3 h2 {PAY}"));
        let head = server.line();
        assert!(head.starts_with("head 1 :method=CONNECT :authority=10.0.0.7:8080"), "{head}");
        assert!(!head.contains(":path") && !head.contains(":scheme"), "{head}");
        assert!(server.line().starts_with("head 1"), "one tunnel for both");
    });
}

#[test]
fn a_connect_that_a_goaway_refused_is_asked_again_elsewhere() {
    calling("goaway", async |caller, via, server| {
        let mut stream = caller.open(via).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        let lines: Vec<String> = (0..4).map(|_| server.line()).collect();
        let begun: Vec<&str> = lines.iter().map(|line| &line[..6]).collect();
        assert_eq!(begun, ["tunnel", "head 1", "tunnel", "head 2"]);
    });
}

#[test]
fn a_peer_that_allows_one_stream_has_a_tunnel_for_each() {
    calling("one", async |caller, via, _| {
        let first = caller.open(via.clone()).await.unwrap();
        let second = caller.open(via.clone()).await.unwrap();
        assert_eq!(caller.counts().tunnels, [2, 0]);
        drop((first, second));
        caller.eventually("they have gone", |counts| counts.streams == [0, 0]).await;
        caller.open(via).await.unwrap();
        assert_eq!(caller.counts().tunnels, [2, 0]);
    });
}

#[test]
fn what_a_foreign_server_refuses_has_a_name() {
    calling("refuse", async |caller, via, _| {
        assert_eq!(caller.open(via).await.err(), Some(ProxyError::TunnelRefused));
    });
    // Refused before it was looked at: asked again, here each time on another stream, and given up.
    calling("late", async |caller, via, _| {
        let _first = caller.open(via.clone()).await.unwrap();
        assert_eq!(caller.open(via).await.err(), Some(ProxyError::TunnelFailed));
    });
}

#[test]
fn a_foreign_servers_cancel_is_no_clean_end() {
    calling("cancel", async |caller, via, _| {
        let mut stream = caller.open(via).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(rest(&mut stream).await.is_err());
    });
}

/// `openssl s_client` says why it was turned away.
#[track_caller]
fn turned_away(called: &Called, args: &[&str], alert: &str, outcome: &str) {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &format!("{}:15008", called.ip), "-quiet"]).args(args);
    let output = command.stdin(Stdio::null()).output().expect("openssl runs (Debian: openssl)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(alert), "{said}");
    called.eventually(outcome, |counts| counts.handshakes.iter().any(|(_, name, ..)| *name == outcome));
}

#[test]
fn openssl_is_told_why() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), |_| {});
    turned_away(&called, &["-tls1_2"], "alert protocol version", "handshake");
    turned_away(&called, &["-tls1_3", "-alpn", "h2"], "alert certificate required", "missing");
    turned_away(&called, &["-tls1_3", "-alpn", "http/1.1"], "alert no application protocol", "handshake");
    let with = |files: &Files, alert: &str, outcome: &str| {
        let (cert, key) = (format!("{}/cert.pem", files.path()), format!("{}/key.pem", files.path()));
        turned_away(&called, &["-tls1_3", "-alpn", "h2", "-cert", &cert, "-key", &key], alert, outcome);
    };
    let now = SystemTime::now();
    let other = Authority::new("other", now);
    with(&Files::new(&root, &other, &Leaf::of(PAY, now)), "alert unknown ca", "unknown_ca");
    let mut old = Leaf::of(PAY, now);
    old.valid.1 = now - std::time::Duration::from_mins(1);
    with(&Files::new(&root, &root, &old), "alert certificate expired", "expired");
    let foreign = Leaf::of("spiffe://elsewhere/ns/default/sa/pay", now);
    with(&Files::new(&root, &root, &foreign), "alert certificate unknown", "wrong_trust_domain");
}

#[test]
fn noise_is_refused_and_nothing_else_happens() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), echo());
    let connect = || std::net::TcpStream::connect((called.ip, 15_008)).unwrap();
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &vec![0xff; 70_000], &[]] {
        let mut socket = connect();
        let _ = socket.write_all(noise);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read_to_end(&mut Vec::new());
    }
    called.eventually("all were counted", |counts| counts.handshakes.iter().map(|h| h.3).sum::<u64>() == 4);
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        caller.open(called.via(called.application.port())).await.unwrap();
    });
}
