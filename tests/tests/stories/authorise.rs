//! Policies decide by request: on one node and through tunnels, over both families, on every way to a workload; for
//! the next request when they change; nothing that is no HTTP is a way around them.

use std::net::SocketAddr;

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod, eventually,
    load::Load,
    process::Process,
    programs::{Nginx, connect_lines, curl, line_server, nginx, url},
    resources::{Service, at, authorization, transport, vip4, vip6},
    udp::{Sockets, udp_server},
};

/// A pod `site-0` labelled `app: site` with nginx on 8080 behind the service `site` (number 1): port 80 is declared to
/// speak HTTP, 81 not; and on 8081, which is not declared at all.
fn site(mesh: &Mesh) -> (Pod, Nginx) {
    mesh.apply(&Service::vip("site", 1).http("http", 80).tcp("tcp", 81).yaml());
    let pod = mesh.pod(1, "site-0").label("app", "site").account("site");
    let mut pod = pod.serves("site", "http", 8080).serves("site", "tcp", 8082).outside().up();
    let server = nginx(&pod, &[8080, 8081, 8082]);
    pod.enrol();
    (pod, server)
}

/// Every way to it: proxied by the caller's agent, by the kernel, by its own addresses, to ports that nobody declares.
fn ways(site: &Pod) -> Vec<String> {
    let (v4, v6) = (site.ip(), site.ip6());
    let mut ways: Vec<SocketAddr> = Vec::new();
    for port in [80, 81] {
        ways.extend([at(vip4(1), port), at(vip6(1), port)]);
    }
    for port in [8080, 8081, 8082] {
        ways.extend([at(v4, port), at(v6, port)]);
    }
    ways.into_iter().map(|to| url(to.ip(), to.port(), "")).collect()
}

/// `cart` may read below /users, `ops` may do everything; nobody may delete.
fn rules(mesh: &Mesh) {
    mesh.apply(&authorization(
        "site",
        "site",
        "allow",
        "[{from: [{serviceAccounts: [cart]}], to: [{methods: [GET, HEAD], paths: [/users/*]}]}, \
         {from: [{serviceAccounts: [ops]}]}]",
    ));
    mesh.apply(&authorization("no-delete", "site", "deny", "[{to: [{methods: [DELETE]}]}]"));
}

fn status(pod: &Pod, args: &[&str]) -> u16 {
    curl(pod, args).status
}

#[track_caller]
fn decided(site: &Pod, cart: &Pod, ops: &Pod, thief: &Pod) {
    for way in ways(site) {
        let (users, admin) = (format!("{way}/users/7?x=/admin"), format!("{way}/admin"));
        eventually(&format!("{way} decides"), || {
            status(cart, &[&users]) == 200
                && status(cart, &[&admin]) == 403
                && status(thief, &[&users]) != 200
        });
        assert_eq!(curl(cart, &[&users]).name(), "site-0", "{way}");
        assert_eq!(status(cart, &["-I", &users]), 200, "{way}");
        assert_eq!(status(cart, &["-X", "POST", "-d", "x", &users]), 403, "{way}");
        assert_eq!(status(ops, &["-X", "POST", "-d", "x", &admin]), 200, "{way}");
        assert_eq!(status(ops, &["-X", "DELETE", &admin]), 403, "{way}");
        assert_eq!(status(cart, &["-X", "DELETE", &users]), 403, "{way}");
        // Servers differ on what these are, so nobody hears them.
        for path in ["/users/../admin", "/users/%2e%2e/admin", "/users//x", "/users/x%2f..", "/users/;x"] {
            let reply = curl(cart, &["--path-as-is", "-i", &format!("{way}{path}")]);
            assert_eq!(reply.status, 400, "{way}{path}");
            assert!(reply.body.contains("x-mesh-reason: unclear_path"), "{reply:?}");
        }
        // The same over HTTP/2, of which nginx speaks none here: only what is allowed gets as far as that.
        let http2 =
            |path: &str| status(cart, &["--http2-prior-knowledge", "--path-as-is", &format!("{way}{path}")]);
        assert_eq!([http2("/admin"), http2("/users/../admin")], [403, 400], "{way}");
        assert!(![403, 400].contains(&http2("/users/7")), "{way}");
        let reply = curl(cart, &["-i", &admin]);
        assert!(reply.body.contains("x-mesh-reason: denied_by_policy"), "{reply:?}");
        assert!(!reply.body.contains("site-0") && !reply.body.contains("no-delete"), "{reply:?}");
    }
}

#[test]
fn requests_decide_on_one_node() {
    let mesh = Mesh::builder().up();
    let (site, log) = site(&mesh);
    let caller = |name: &str| mesh.pod(1, name).account(name).up();
    let (cart, ops, thief) = (caller("cart"), caller("ops"), caller("thief"));
    for way in ways(&site) {
        eventually(&format!("{way} answers"), || status(&thief, &[&format!("{way}/admin")]) == 200);
    }
    rules(&mesh);
    decided(&site, &cart, &ops, &thief);
    let refused = log.hits("DELETE") + log.hits("..");
    assert_eq!(refused, 0, "{}", log.access_log());
    // Whom no rule could ever allow the kernel refuses, where it decides; else the agent does.
    assert_eq!(curl(&thief, &[&url(site.ip(), 8081, "/users/7")]).exit, 7);
    assert_eq!(status(&thief, &[&url(vip4(1), 80, "/users/7")]), 403);
    let node = mesh.node(1);
    let denied = [("reason", "denied_by_policy"), ("status", "403")];
    assert!(node.metrics().count("mesh_requests_total", &denied) > 0);
    eventually("the log says who, whom and why", || {
        node.log().lines().any(|line| {
            line.contains("refused by policy")
                && line.contains("default/cart")
                && line.contains("default/site-0")
        })
    });
    // A workload may always call itself.
    assert_eq!(status(&site, &["-X", "DELETE", &url(site.ip(), 8081, "/")]), 200);
    asked(&mesh);
    // Without an agent these ports are closed, whatever `onProxyLoss` says, and stay so until one is back.
    node.kill_agent();
    for way in
        [url(site.ip(), 8080, "/users/7"), url(site.ip6(), 8081, "/users/7"), url(vip4(1), 81, "/users/7")]
    {
        assert_eq!(curl(&cart, &[&way]).exit, 7, "{way}");
    }
    node.start_agent();
    node.wait_ready();
    decided(&site, &cart, &ops, &thief);
}

/// What `meshctl authz check` says is what has just been seen.
fn asked(mesh: &Mesh) {
    let check = |args: &[&str]| mesh.meshctl(&[&["authz", "check"], args].concat(), "");
    let depends = check(&["cart", "site-0", "-p", "8080"]);
    assert!(depends.contains("depends") && depends.contains("rules[0]"), "{depends}");
    let users = check(&["cart", "site-0", "-p", "8080", "-X", "GET", "--path", "/users/7"]);
    assert!(users.contains("allowed by rules[0] of AuthorizationPolicy default/site"), "{users}");
    let delete = check(&["ops", "site-0", "-p", "8080", "--method", "DELETE"]);
    assert!(delete.contains("denied by rules[0] of AuthorizationPolicy default/no-delete"), "{delete}");
    let thief = check(&["thief", "site-0", "-p", "8080", "--path", "/users/7", "-H", "x-a:1"]);
    assert!(thief.contains("refused"), "{thief}");
}

#[test]
fn requests_decide_between_nodes_in_tunnels() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (site, _log) = site(&mesh);
    let caller = |name: &str| mesh.pod(2, name).account(name).up();
    let (cart, ops, thief) = (caller("cart"), caller("ops"), caller("thief"));
    for way in ways(&site) {
        eventually(&format!("{way} answers"), || status(&thief, &[&format!("{way}/admin")]) == 200);
    }
    rules(&mesh);
    decided(&site, &cart, &ops, &thief);
}

#[test]
fn without_a_proof_identities_match_nothing_and_requests_still_decide() {
    let mesh = Mesh::builder().nodes(2).up();
    let (site, _log) = site(&mesh);
    let cart = mesh.pod(2, "cart").account("cart").up();
    let to = url(site.ip(), 8081, "");
    mesh.apply(&authorization(
        "site",
        "site",
        "allow",
        "[{to: [{paths: [/public/*], hosts: [\"*.shop.example\"]}], headers: [{name: x-env, values: [test]}]}, \
         {from: [{serviceAccounts: [cart]}]}]",
    ));
    let ask = |host: &str, env: &str| {
        let (host, env) = (format!("host: {host}"), format!("x-env: {env}"));
        status(&cart, &["-H", &host, "-H", &env, &format!("{to}/public/x")])
    };
    eventually("the rule on requests holds", || ask("a.shop.example", "prod") == 403);
    assert_eq!(ask("a.shop.example:8081", "test"), 200);
    assert_eq!(ask("A.SHOP.example", "test"), 200);
    assert_eq!(ask("shop.example", "test"), 403);
    assert_eq!(status(&cart, &[&format!("{to}/public/x")]), 403);
}

/// Carries out steps on one connection and prints what came of each: `["send", TEXT]`, `["read"]` (status of a response,
/// first line of other bytes, `end`, `reset`), `["wait", FILE]`.
const CLIENT: &str = r"
import json, os, socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
left = b''
for step in json.loads(sys.argv[3]):
    try:
        if step[0] == 'send':
            s.sendall(step[1].encode('latin-1'))
            continue
        if step[0] == 'wait':
            print('waits', flush=True)
            while not os.path.exists(step[1]):
                time.sleep(0.01)
            continue
        while b'\n' not in left:
            more = s.recv(65536)
            if not more:
                raise EOFError
            left += more
        if not left.startswith(b'HTTP/'):
            line, _, left = left.partition(b'\n')
            print(line.decode(), flush=True)
            continue
        while b'\r\n\r\n' not in left:
            left += s.recv(65536)
        head, _, left = left.partition(b'\r\n\r\n')
        fields = dict(line.lower().split(b': ', 1) for line in head.split(b'\r\n')[1:])
        for _ in range(int(fields.get(b'content-length', b'0')) - len(left)):
            left += s.recv(1)
        left = left[int(fields.get(b'content-length', b'0')):]
        print(head.split()[1].decode(), flush=True)
    except EOFError:
        print('end', flush=True)
    except OSError as error:
        print('reset' if isinstance(error, ConnectionError) else type(error).__name__, flush=True)
print('done', flush=True)
";

struct Talk(Process);

impl Talk {
    fn start(pod: &Pod, name: &str, to: SocketAddr, steps: &serde_json::Value) -> Self {
        let (address, port) = (to.ip().to_string(), to.port().to_string());
        Self(pod.start(name, "/usr/bin/python3", &["-c", CLIENT, &address, &port, &steps.to_string()]))
    }

    #[track_caller]
    fn says(&self, lines: &[&str]) {
        eventually(&format!("the client says {lines:?}, not {:?}", self.0.log()), || {
            self.0.log().lines().eq(lines.iter().copied())
        });
    }
}

/// Answers requests to upgrade with 101 and then every line with itself.
const UPGRADES: &str = r"
import socket, sys, threading
def serve(c):
    f = c.makefile('rwb')
    while f.readline().strip():
        pass
    f.write(b'HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n'); f.flush()
    for line in f:
        f.write(line); f.flush()
s = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print('listens', flush=True)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
";

const GET: &str = "GET /users/7 HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn a_change_decides_the_next_request_and_ends_what_is_no_http_any_more() {
    let mesh = Mesh::builder().up();
    let (site, _log) = site(&mesh);
    let upgrades = site.start("upgrades", "/usr/bin/python3", &["-c", UPGRADES, "8090"]);
    eventually("the server of upgrades listens", || upgrades.log().contains("listens"));
    let lines = line_server(&site, 7000);
    let cart = mesh.pod(1, "cart").account("cart").up();
    // Opened before any policy looks at requests: opaque bytes straight to the application.
    let direct = mesh_tests::programs::hold(&cart, "direct", at(site.ip(), 7000), 3);
    assert_eq!(direct.lines.servers["site-0"], 3);
    rules(&mesh);
    eventually("opaque bytes are refused", || {
        !connect_lines(&cart, at(site.ip(), 7000), 1).errors.is_empty()
    });
    let ended = || mesh.node(1).metrics().count("mesh_policy_ended_total", &[]);
    eventually("what was open before has ended", || ended() >= 3);

    let flag = cart.work().join("go");
    let go = flag.to_string_lossy();
    let steps = serde_json::json!([
        ["send", GET],
        ["read"],
        ["wait", go],
        ["send", GET],
        ["read"],
        ["send", GET],
        ["read"]
    ]);
    let kept: Vec<Talk> = [at(vip4(1), 80), at(vip4(1), 81), at(site.ip(), 8081), at(site.ip6(), 8081)]
        .iter()
        .enumerate()
        .map(|(i, to)| Talk::start(&cart, &format!("kept-{i}"), *to, &steps))
        .collect();
    let upgrade = "GET /users/x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let steps = serde_json::json!([["send", upgrade], ["read"], ["send", "hello\n"], ["read"], ["read"]]);
    let upgraded = Talk::start(&cart, "upgraded", at(site.ip(), 8090), &steps);
    upgraded.says(&["101", "hello"]);
    for talk in &kept {
        talk.says(&["200", "waits"]);
    }
    let elsewhere = "[{from: [{serviceAccounts: [cart]}], to: [{methods: [GET], paths: [/other]}]}]";
    mesh.apply(&authorization("site", "site", "allow", elsewhere));
    eventually("the change holds", || status(&cart, &[&url(site.ip(), 8081, "/users/7")]) == 403);
    std::fs::write(&flag, "").unwrap();
    for talk in &kept {
        talk.says(&["200", "waits", "403", "403", "done"]);
    }
    upgraded.says(&["101", "hello", "reset", "done"]);
    drop((direct, lines));
}

#[test]
fn bytes_that_are_no_http_are_no_way_around() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let (site, log) = site(&mesh);
    let _lines = line_server(&site, 7000);
    let (cart, far) = (mesh.pod(1, "cart").account("cart").up(), mesh.pod(2, "far").account("cart").up());
    let ops = mesh.pod(1, "ops").account("ops").up();
    rules(&mesh);
    let ways = [
        (&cart, at(site.ip(), 8081)),
        (&cart, at(vip4(1), 81)),
        (&far, at(vip4(1), 81)),
        (&far, at(site.ip6(), 8081)),
    ];
    for (pod, to) in ways {
        eventually("the policy holds", || status(pod, &[&url(to.ip(), to.port(), "/admin")]) == 403);
    }
    // A TLS handshake, noise, a request behind a line of noise.
    let tls = "\u{16}\u{3}\u{1}\u{0}\u{5}hello";
    let hidden = format!("\u{1}\u{2}\r\n\r\n{GET}");
    let delete = "GET /users/7 HTTP/1.1\r\nhost: a\r\n\r\nDELETE /users/7 HTTP/1.1\r\nhost: a\r\n\r\n";
    let smuggled = "POST /users/7 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for (i, (pod, to)) in ways.into_iter().enumerate() {
        let talk = |name: &str, bytes: &str, want: &[&str]| {
            let steps: Vec<_> = std::iter::once(serde_json::json!(["send", bytes]))
                .chain(want.iter().map(|_| serde_json::json!(["read"])))
                .collect();
            let talk = Talk::start(pod, &format!("{name}-{i}"), to, &serde_json::Value::from(steps));
            talk.says(&[want, &["done"]].concat());
        };
        talk("tls", tls, &["reset"]);
        talk("noise", &hidden, &["reset"]);
        talk("pipelined", delete, &["200", "403"]);
        talk("smuggled", smuggled, &["400"]);
        talk("connect", "CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", &["403"]);
        talk("options", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", &["403"]);
        talk("absolute", "GET http://a/admin HTTP/1.1\r\nhost: /users/7\r\n\r\n", &["400"]);
        talk("target", "GET http://a/admin HTTP/1.1\r\nhost: a\r\n\r\n", &["403"]);
    }
    assert_eq!(log.hits("admin"), 0, "{}", log.access_log());
    // Who may do everything may not say what nobody can read for a DELETE either, as long as that is denied.
    assert!(!connect_lines(&ops, at(site.ip(), 7000), 1).errors.is_empty());
    mesh.meshctl(&["delete", "authorizationpolicy", "no-delete"], "");
    eventually("who may do everything may send any bytes", || {
        connect_lines(&ops, at(site.ip(), 7000), 1).errors.is_empty()
    });
    assert!(!connect_lines(&cart, at(site.ip(), 7000), 1).errors.is_empty());
    assert!(mesh.node(1).verdict(Verdict::InboundCaptured) > 0);
}

#[test]
fn what_audits_counts_and_refuses_nothing() {
    let mesh = Mesh::builder().up();
    let (site, _log) = site(&mesh);
    let _lines = line_server(&site, 7000);
    let cart = mesh.pod(1, "cart").account("cart").up();
    mesh.apply(&authorization("deletes", "site", "audit", "[{to: [{ports: [8080], methods: [DELETE]}]}]"));
    mesh.apply(&authorization(
        "cart",
        "site",
        "audit",
        "[{from: [{serviceAccounts: [cart]}], to: [{ports: [7000]}]}]",
    ));
    let node = mesh.node(1);
    let counted = |policy: &str| node.metrics().count("mesh_policy_audited_total", &[("policy", policy)]);
    for to in [url(site.ip(), 8080, "/x"), url(vip4(1), 80, "/x")] {
        eventually("a DELETE is counted", || {
            let before = counted("default/deletes");
            status(&cart, &["-X", "DELETE", &to]) == 200 && counted("default/deletes") == before + 1
        });
        let before = counted("default/deletes");
        assert_eq!(status(&cart, &[&to]), 200);
        assert_eq!(counted("default/deletes"), before, "{to}");
    }
    // Whatever is spoken there.
    eventually("connections are counted", || {
        let lines = connect_lines(&cart, at(site.ip(), 7000), 3);
        lines.errors.is_empty() && counted("default/cart") >= 3
    });
    assert!(node.log().contains("matched by a policy that audits"));
    // Where only something is counted, a lost agent closes nothing.
    node.kill_agent();
    assert_eq!(status(&cart, &["-X", "DELETE", &url(site.ip(), 8080, "/x")]), 200);
    assert!(connect_lines(&cart, at(site.ip6(), 7000), 3).errors.is_empty());
    node.start_agent();
}

#[test]
fn exclusions_and_datagrams_are_no_way_around() {
    let mesh = Mesh::builder().up();
    let (site, _log) = site(&mesh);
    let _udp = udp_server(&site, 9000);
    let (cart, ops) = (
        mesh.pod(1, "cart").label("app", "cart").account("cart").up(),
        mesh.pod(1, "ops").account("ops").up(),
    );
    let said = |pod: &Pod| Sockets::of(pod).ask(0, at(site.ip(), 9000)).is_ok();
    eventually("datagrams are heard", || said(&cart));
    let lines = ["selector: {matchLabels: {app: site}}", "exclude: {inbound: {ports: [8081]}}"];
    mesh.apply(&transport("left-alone", &lines));
    mesh.apply(&transport(
        "cart",
        &["selector: {matchLabels: {app: cart}}", "exclude: {outbound: {ports: [8082]}}"],
    ));
    let reads = "[{from: [{serviceAccounts: [cart]}], to: [{methods: [GET], paths: [/users/*]}]}, \
                 {from: [{serviceAccounts: [ops]}]}]";
    mesh.apply(&authorization("site", "site", "allow", reads));
    for port in [8081, 8082] {
        let to = url(site.ip(), port, "");
        eventually("requests decide", || status(&cart, &[&format!("{to}/admin")]) == 403);
        assert_eq!(status(&cart, &[&format!("{to}/users/7")]), 200);
    }
    // A datagram is no request.
    eventually("who may only read is not heard", || !said(&cart));
    assert!(said(&ops));
}

#[test]
fn requests_decide_for_workloads_of_the_host() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("site", 1).tcp("tcp", 80).yaml());
    let pod = mesh.pod(1, "site-0").label("app", "site").serves("site", "tcp", 8080);
    let mut site = pod.on_host().outside().up();
    let _server = nginx(&site, &[8080]);
    site.enrol();
    let cart = mesh.pod(1, "cart").account("cart").up();
    let unit = mesh.pod(1, "unit").account("cart").on_host().up();
    let reads =
        "[{from: [{serviceAccounts: [cart]}], to: [{ports: [8080], methods: [GET], paths: [/users/*]}]}]";
    mesh.apply(&authorization("site", "site", "allow", reads));
    for pod in [&cart, &unit] {
        for to in [url(vip4(1), 80, ""), url(site.ip(), 8080, ""), url(site.ip6(), 8080, "")] {
            eventually(&format!("{to} decides for {}", pod.name()), || {
                status(pod, &[&format!("{to}/admin")]) == 403
                    && status(pod, &[&format!("{to}/users/7")]) == 200
            });
        }
    }
}

#[test]
fn nothing_that_is_allowed_fails_while_an_agent_takes_over_and_policies_change() {
    let mesh = Mesh::builder().up();
    let (site, _log) = site(&mesh);
    std::fs::create_dir_all(site.work().join("files/users")).unwrap();
    std::fs::write(site.work().join("files/long"), vec![b'l'; 4 << 20]).unwrap();
    let cart = mesh.pod(1, "cart").account("cart").up();
    let reads = |more: &str| {
        format!(
            "[{{from: [{{serviceAccounts: [cart]}}], to: [{{methods: [GET], paths: [/users/*, /files/*{more}]}}]}}]"
        )
    };
    mesh.apply(&authorization("site", "site", "allow", &reads("")));
    let (direct, proxied) = (at(site.ip(), 8081), at(vip4(1), 80));
    for to in [direct, proxied] {
        eventually("requests decide", || status(&cart, &[&url(to.ip(), to.port(), "/admin")]) == 403);
    }
    let loads = [direct, proxied].map(|to| Load::to(to).path("/users/7").threads(2).rate(200).start(&cart));
    let node = mesh.node(1);
    for round in 0..3 {
        for load in &loads {
            drop(load.go_on(50));
        }
        let long = url(direct.ip(), direct.port(), "/files/long");
        let args = ["-sS", "-f", "--limit-rate", "2M", "-o", "long", &long];
        let mut download = cart.start(&format!("long-{round}"), "curl", &args);
        mesh.apply(&authorization("site", "site", "allow", &reads(&format!(", /more/{round}"))));
        let ended = node.hand_over();
        assert!(ended.success(), "the predecessor ended with {ended}:\n{}", node.log());
        mesh.apply(&authorization("site", "site", "allow", &reads(&format!(", /again/{round}"))));
        let curl = download.wait(std::time::Duration::from_secs(20));
        assert!(curl.success(), "the download was cut: {}\n{}", download.log(), node.log());
        node.wait_ready();
        assert_eq!(status(&cart, &[&url(direct.ip(), direct.port(), "/admin")]), 403);
    }
    for load in loads {
        let report = load.stop();
        assert_eq!(report.failed(), 0, "{report:?}\n{}", node.log());
    }
}
