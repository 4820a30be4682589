//! Keys change and are revoked while requests and connections go on between nodes: none fails that should pass, none
//! passes that should fail.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Node, Pod, eventually,
    load::{Load, Running},
    programs::{Nginx, line_server, talk},
    resources::{Service, at, transport, vip4},
    shell, within,
};
use serde_json::Value;

use crate::words::{settled, web};

/// Certificates end within seconds: each is renewed many times, and tunnels with them.
const SHORT: [&str; 4] = ["--svid-ttl", "6s", "--node-ttl", "6s"];
const ROTATED: Duration = Duration::from_secs(90);

/// A strict mesh with `raw` (1) and `site` (2) on node 1.
fn servers(mesh: &Mesh) -> [(Pod, Nginx); 2] {
    mesh.apply(&Service::vip("raw", 1).tcp("tcp", 80).yaml());
    mesh.apply(&Service::vip("site", 2).http("http", 80).yaml());
    mesh.apply(&transport("strict", &["mtls: {mode: strict}"]));
    [web(mesh, 1, "raw-a", "raw", "tcp", 1), web(mesh, 1, "site-a", "site", "http", 1)]
}

/// Connections to `raw`, requests on kept connections and on new ones to `site`.
fn loads(client: &Pod) -> [Running; 3] {
    settled(client, at(vip4(1), 80), &["raw-a"]);
    settled(client, at(vip4(2), 80), &["site-a"]);
    [
        Load::to(at(vip4(1), 80)).threads(2).rate(100).start(client),
        Load::to(at(vip4(2), 80)).threads(2).rate(100).keep_alive().start(client),
        Load::to(at(vip4(2), 80)).threads(2).rate(50).start(client),
    ]
}

#[track_caller]
fn all_ok(loads: [Running; 3], nodes: &Mesh) {
    for load in loads {
        let report = load.stop();
        let logs = || nodes.nodes().map(Node::report).collect::<String>();
        assert_eq!(report.failed(), 0, "{report:?}\n{}", logs());
        println!("{} passed in {:.0} s", report.ok, report.seconds);
    }
}

fn ca(mesh: &Mesh) -> Value {
    serde_json::from_str(&mesh.meshctl(&["ca", "status", "-o", "json"], "")).unwrap()
}

fn handshakes(node: &Node) -> u64 {
    node.metrics().count("mesh_hbone_handshakes_total", &[("role", "server"), ("outcome", "ok")])
}

fn serial(node: &Node, identity: &str) -> Option<String> {
    let all = node.identities();
    let of = all["identities"].as_array()?.iter().find(|one| one["identity"] == identity)?;
    (!of["notAfter"].is_null()).then(|| of["serial"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn no_request_fails_while_certificates_intermediate_and_root_are_rotated() {
    let mesh = Mesh::builder().nodes(2).mtls().control_args(&SHORT).up();
    let _servers = servers(&mesh);
    let client = mesh.pod(2, "client").up();
    let loads = loads(&client);
    // Certificates alone: tunnels whose certificate has ended are opened anew.
    let (renewed, opened) = (serial(mesh.node(2), DEFAULT), handshakes(mesh.node(1)));
    within(ROTATED, "tunnels are opened with other certificates", || {
        serial(mesh.node(2), DEFAULT) != renewed && handshakes(mesh.node(1)) > opened + 2
    });
    let before = ca(&mesh);
    mesh.meshctl(&["ca", "rotate"], "");
    let opened = handshakes(mesh.node(1));
    within(ROTATED, "the new intermediate signs", || {
        ca(&mesh)["intermediate"]["sha256"] != before["intermediate"]["sha256"]
            && handshakes(mesh.node(1)) > opened + 2
    });
    mesh.meshctl(&["ca", "rotate", "--root"], "");
    within(ROTATED, "the new root is all that is believed", || {
        let status = ca(&mesh);
        status["stage"] == "steady"
            && status["roots"].as_array().is_some_and(|roots| roots.len() == 1)
            && status["roots"][0]["sha256"] != before["roots"][0]["sha256"]
    });
    let opened = handshakes(mesh.node(1));
    within(ROTATED, "tunnels are opened under it", || handshakes(mesh.node(1)) > opened);
    all_ok(loads, &mesh);
}

const DEFAULT: &str = "spiffe://mesh.local/ns/default/sa/default";
const ONE: &str = "spiffe://mesh.local/ns/default/sa/one";

#[test]
fn what_an_identity_had_ends_with_its_certificate_and_no_other_identity_notices() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let _servers = servers(&mesh);
    mesh.apply(&Service::vip("db", 3).tcp("tcp", 7000).yaml());
    let mut db = mesh.pod(1, "db").serves("db", "tcp", 7000).outside().up();
    let _lines = line_server(&db, 7000);
    db.enrol();
    let (one, other) = (mesh.pod(2, "one").account("one").up(), mesh.pod(2, "other").account("other").up());
    settled(&one, at(vip4(1), 80), &["raw-a"]);
    let loads = loads(&other);
    let to = [at(vip4(3), 7000)];
    let talks = [talk(&one, "talk", &to), talk(&other, "talk", &to)];
    let before = serial(mesh.node(2), ONE).unwrap();
    let begun = Instant::now();
    mesh.meshctl(&["ca", "revoke", "--identity", ONE], "");
    within(Duration::from_secs(5), "its tunnels are cut", || talks[0].now(to[0]).1);
    println!("cut {} ms after the revocation", begun.elapsed().as_millis());
    within(Duration::from_secs(10), "it has another certificate", || {
        serial(mesh.node(2), ONE).is_some_and(|now| now != before)
    });
    settled(&one, at(vip4(1), 80), &["raw-a"]);
    talks[1].goes_on(&to);
    all_ok(loads, &mesh);
}

#[test]
fn a_revoked_node_is_heard_no_more_and_others_are_not_disturbed() {
    let mesh = Mesh::builder().nodes(3).mtls().up();
    let _servers = servers(&mesh);
    // Of the same account: what is revoked is what the node had.
    let (out, stays) = (mesh.pod(2, "out").up(), mesh.pod(3, "stays").up());
    let (revoked, others) = (loads(&out), loads(&stays));
    let begun = Instant::now();
    mesh.meshctl(&["node", "revoke", "node2"], "");
    let counts = || revoked.each_ref().map(Running::now);
    let answered = || counts().map(|report| report.ok);
    let failed = || counts().map(|report| report.failed());
    let at_first = failed();
    within(Duration::from_secs(10), "what it sends fails", || {
        failed().iter().zip(at_first).all(|(now, before)| *now > before)
    });
    // Cut within a look of the agents' at their tunnels; what was under way had been asked before.
    let mut last = answered();
    within(Duration::from_secs(10), "nothing of it is answered any more", || {
        let before = failed();
        eventually("it goes on trying", || {
            failed().iter().zip(before).all(|(now, before)| *now > before + 5)
        });
        let now = answered();
        std::mem::replace(&mut last, now) == now
    });
    println!("nothing is answered {} ms after the revocation, or sooner", begun.elapsed().as_millis());
    let before = failed();
    within(Duration::from_secs(30), "it fails for as long as it tries", || {
        failed().iter().zip(before).all(|(now, before)| *now > before + 50)
    });
    assert_eq!(answered(), last, "a revoked node was heard");
    for load in revoked {
        load.stop();
    }
    all_ok(others, &mesh);
}

/// Asks the control plane, with a node's certificate, to sign for an identity. Prints the reason and the text.
const ASK: &str = r"
import base64, json, os, socket, ssl, subprocess, sys, tempfile
import h2.config, h2.connection, h2.events
state, host, identity = sys.argv[1:4]
own = json.load(open(state + '/node-identity.json'))
pem = lambda kind, text: '-----BEGIN %s-----\n%s-----END %s-----\n' % (
    kind, base64.encodebytes(bytes.fromhex(text)).decode(), kind)
folder = tempfile.mkdtemp()
path = lambda name: os.path.join(folder, name)
open(path('own.pem'), 'w').write(
    ''.join(pem('CERTIFICATE', one) for one in own['chain']) + pem('PRIVATE KEY', own['key']))
open(path('roots.pem'), 'w').write(''.join(pem('CERTIFICATE', one) for one in own['roots']))
subprocess.run(['openssl', 'req', '-new', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', '/',
    '-addext', 'subjectAltName=critical,URI:' + identity, '-keyout', path('key.pem'), '-outform', 'DER',
    '-out', path('csr.der')], check=True, stderr=subprocess.DEVNULL)
def field(number, data):
    length, out = len(data), bytes([number << 3 | 2])
    while length > 127:
        out, length = out + bytes([length & 127 | 128]), length >> 7
    return out + bytes([length]) + data
request = field(1, field(1, identity.encode()) + field(2, open(path('csr.der'), 'rb').read()))
context = ssl.create_default_context(cafile=path('roots.pem'))
context.check_hostname = False
context.load_cert_chain(path('own.pem'))
context.set_alpn_protocols(['h2'])
sock = context.wrap_socket(socket.create_connection((host, 15012), 5), server_hostname=host)
http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
http.initiate_connection()
http.send_headers(1, [(':method', 'POST'), (':scheme', 'https'), (':authority', host),
    (':path', '/nodemesh.v1.Identity/Sign'), ('te', 'trailers'), ('content-type', 'application/grpc')])
http.send_data(1, b'\0' + len(request).to_bytes(4, 'big') + request, end_stream=True)
sock.sendall(http.data_to_send())
body, ended = b'', False
while not ended:
    for event in http.receive_data(sock.recv(65536)):
        if isinstance(event, h2.events.DataReceived):
            body += event.data
        ended = ended or isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset))
    sock.sendall(http.data_to_send())
print('certificate' if len(body) > 300 else 'refused', body[5:].decode('latin1'))
";

#[test]
fn an_agent_that_asks_for_an_identity_that_is_not_its_own_is_refused() {
    let mesh = Mesh::builder().nodes(2).up();
    let mut here = mesh.pod(1, "a").account("cart").up();
    let _there = mesh.pod(2, "b").account("pay").up();
    let node = mesh.node(1);
    let mine = "spiffe://mesh.local/ns/default/sa/cart";
    eventually("it hosts an identity", || serial(node, mine).is_some());
    let ask = |identity: &str| {
        let mut command = Command::new("/usr/bin/python3");
        let state = node.work().join("state").to_string_lossy().into_owned();
        command.args(["-c", ASK, &state, &mesh_tests::mesh::CONTROL.to_string(), identity]);
        node.netns().with(|| shell::run(&mut command, "")).unwrap()
    };
    // The script asks as an agent does: what the node hosts and may host is signed.
    let answer = ask(mine);
    assert!(answer.starts_with("certificate"), "{answer}");
    here.leave();
    let metrics = || mesh.fabric().metrics();
    for (identity, reason) in [
        // Of a workload of another node; of none; not granted; of no mesh of ours; another node.
        ("spiffe://mesh.local/ns/default/sa/pay", "not_hosted"),
        (mine, "not_hosted"),
        ("spiffe://mesh.local/ns/bank/sa/pay", "not_granted"),
        ("spiffe://elsewhere/ns/default/sa/cart", "foreign_identity"),
        ("spiffe://mesh.local/node/node2", "foreign_identity"),
    ] {
        let before = metrics().count("mesh_control_certificates_refused_total", &[("reason", reason)]);
        eventually(&format!("{identity} is refused"), || ask(identity).starts_with("refused"));
        ask(identity);
        let after = metrics().count("mesh_control_certificates_refused_total", &[("reason", reason)]);
        assert!(after >= before + 2, "{identity}: {reason} {before} {after}");
        let log = mesh.fabric().log();
        let told = log.lines().filter(|line| line.contains("certificate refused") && line.contains(identity));
        assert_eq!(told.count(), 1, "once, for {identity}:\n{log}");
    }
    assert!(fs::read_to_string(node.work().join("state/node-identity.json")).unwrap().contains("key"));
    here.enrol();
    eventually("the agent itself is served", || serial(node, mine).is_some());
}
