//! What a `TLSRoute` does with connections of TLS, which nobody but their server opens: nginx, curl and openssl.

use std::net::SocketAddr;

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{Reply, curl},
    resources::{Service, at, vip4, vip6},
    tls::{Authority, tls_nginx},
};

struct Shop {
    mesh: Mesh,
    client: Pod,
    ca: Authority,
    _servers: Vec<(Pod, Process)>,
}

/// Services `front` and `a`, `b`, `old` behind it, each with nginx of its own, whose certificates are for its names.
fn shop() -> Shop {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("front", 1), ("a", 2), ("b", 3), ("old", 4)] {
        mesh.apply(&Service::vip(name, number).port("tls", 443, "tls", "kernel").yaml());
    }
    let client = mesh.pod(1, "client").up();
    let ca = Authority::new(client.work(), "shop");
    let of = |node: u8, name: &str, service: &str, names: &str| {
        let mut pod = mesh.pod(node, name).serves(service, "tls", 8443).outside().up();
        let server = tls_nginx(&pod, 8443, &ca.issue(name, names, 1), None);
        pod.enrol();
        (pod, server)
    };
    let servers = vec![
        of(1, "a-1", "a", "DNS:a.example"),
        of(2, "b-1", "b", "DNS:*.b.example"),
        of(2, "old-1", "old", "DNS:*.b.example,DNS:a.example"),
    ];
    Shop { mesh, client, ca, _servers: servers }
}

fn route(name: &str, hosts: &str, backends: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: {name}}}\nspec:\n\
         \x20 parentRefs: [{{kind: Service, name: front, port: 443}}]\n  hostnames: {hosts}\n\
         \x20 rules: [{{backendRefs: {backends}}}]\n"
    )
}

impl Shop {
    /// By curl, which believes the authority and checks the name.
    fn get(&self, name: &str, to: SocketAddr) -> Reply {
        let ip = if to.is_ipv6() { format!("[{}]", to.ip()) } else { to.ip().to_string() };
        let resolve = format!("{name}:443:{ip}");
        let url = format!("https://{name}/");
        curl(&self.client, &["--cacert", &self.ca.file(), "--resolve", &resolve, &url])
    }
}

#[test]
fn names_choose_and_nobody_but_the_server_opens_it() {
    let shop = shop();
    shop.mesh.apply(&route("a", "[a.example]", "[{name: a, port: 443}]"));
    shop.mesh.apply(&route(
        "b",
        "['*.b.example']",
        "[{name: b, port: 443, weight: 3}, {name: old, port: 443}]",
    ));
    for front in [at(vip4(1), 443), at(vip6(1), 443)] {
        eventually("the exact name goes to its server", || shop.get("a.example", front).name() == "a-1");
        assert_eq!(shop.get("a.example", front).field("sni"), "a.example");
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..40 {
            *seen.entry(shop.get("x.b.example", front).name().to_owned()).or_default() += 1;
        }
        assert!(seen.len() == 2 && seen["b-1"] > seen["old-1"], "{seen:?}");
        // A name that no route has is told so in TLS's own words; so is none at all.
        let reply = shop.get("b.example", front);
        assert!(reply.exit == 35 && reply.error.contains("unrecognized name"), "{reply:?}");
        let to = front.to_string();
        let said = shop.client.run("openssl", &["s_client", "-connect", &to, "-noservername", "-brief"]);
        let said = format!("{:#}", said.expect_err("refused"));
        assert!(said.contains("unrecognized name"), "{said}");
        // What is no TLS is reset.
        let plain = curl(&shop.client, &[&format!("http://{to}/")]);
        assert!(plain.status == 0 && [52, 56].contains(&plain.exit), "{plain:?}");
    }
    let counted = |reason: &str| {
        let labels = [("protocol", "tls"), ("reason", reason)];
        shop.mesh.node(1).metrics().count("mesh_requests_total", &labels)
    };
    eventually("refusals are counted by their reason", || {
        [counted("no_route"), counted("tls_no_name"), counted("not_tls")].iter().all(|count| *count >= 2)
    });
    // TLS has the bytes: without the agent nobody can tell names apart, so nothing is guessed.
    shop.mesh.node(1).kill_agent();
    let reply = shop.get("a.example", at(vip4(1), 443));
    assert!(reply.status == 0 && reply.exit == 7, "{reply:?}");
    shop.mesh.node(1).start_agent();
    shop.mesh.node(1).wait_ready();
    eventually("with it all is as before", || shop.get("a.example", at(vip4(1), 443)).name() == "a-1");
}

/// A handshake whose hello comes in small records and smaller pieces.
const FRAGMENTS: &str = r"
import socket, ssl, sys
host, port, name, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.create_default_context(cafile=ca).wrap_bio(come, go, server_hostname=name)
try:
    tls.do_handshake()
except ssl.SSLWantReadError:
    pass
record = go.read()
body, pieces = record[5:], b''
for at in range(0, len(body), 60):
    part = body[at:at + 60]
    pieces += record[:3] + len(part).to_bytes(2, 'big') + part
sock = socket.create_connection((host, port), timeout=5)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for at in range(0, len(pieces), 17):
    sock.sendall(pieces[at:at + 17])
def step(work):
    while True:
        try:
            done = work()
            sock.sendall(go.read())
            return done
        except ssl.SSLWantReadError:
            sock.sendall(go.read())
            got = sock.recv(65536)
            come.write(got) if got else come.write_eof()
step(tls.do_handshake)
step(lambda: tls.write(b'GET / HTTP/1.0\r\nHost: ' + name.encode() + b'\r\n\r\n'))
print(step(lambda: tls.read(65536)).decode() + step(lambda: tls.read(65536)).decode())
";

#[test]
fn a_hello_in_fragments_is_put_together_and_a_route_of_tcp_gives_way() {
    let shop = shop();
    shop.mesh.apply(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: all}\nspec:\n\
         \x20 parentRefs: [{kind: Service, name: front, port: 443}]\n\
         \x20 rules: [{backendRefs: [{name: old, port: 443}]}]\n",
    );
    let front = at(vip4(1), 443);
    eventually("TCP's route takes them all", || shop.get("a.example", front).name() == "old-1");
    shop.mesh.apply(&route("a", "[a.example]", "[{name: a, port: 443}]"));
    eventually("and gives way", || shop.get("a.example", front).name() == "a-1");
    let told = shop.mesh.meshctl(&["get", "tcproutes"], "");
    assert!(told.contains("has TLSRoute default/a"), "{told}");
    let file = shop.ca.file();
    let args = ["-c", FRAGMENTS, &front.ip().to_string(), "443", "a.example", &file];
    let said = shop.client.run("/usr/bin/python3", &args).unwrap();
    assert!(said.contains("name=a-1") && said.contains("sni=a.example"), "{said}");
    shop.mesh.meshctl(&["delete", "tlsroute", "a"], "");
    eventually("TCP's route has them again", || shop.get("a.example", front).name() == "old-1");
}
