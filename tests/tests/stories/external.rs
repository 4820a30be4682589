//! Services outside of the mesh: under names and virtual addresses of the mesh, in TLS that the agent speaks, or in
//! the workload's own.

use std::{fs, path::PathBuf, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh, Pod,
    dns::{dig, resolver, with_resolv_conf},
    eventually,
    eventually::until,
    mesh::MeshBuilder,
    programs::{Reply, curl, line_server, nginx},
    resources::{Service, external, mesh_egress, mesh_mtls, vip4},
    tls::{Authority, reverser, tls_nginx},
    within,
};

use crate::words::REFUSED;

/// The first pod of node 1.
const DNS: &str = "10.91.1.10";

/// A `resolv.conf` for agents.
struct ResolvConf(PathBuf);

impl ResolvConf {
    fn new(story: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nm-{}-{story}.resolv.conf", std::process::id()));
        fs::write(&path, format!("nameserver {DNS}\n")).unwrap();
        Self(path)
    }

    fn mesh(&self) -> MeshBuilder {
        Mesh::builder().nodes(2).agent_args(&["--resolv-conf", &self.0.to_string_lossy()])
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The virtual address that a name has for a pod.
#[track_caller]
fn vip(pod: &Pod, name: &str) -> String {
    let asked = || dig(pod, DNS.parse::<std::net::Ipv4Addr>().unwrap(), &[name, "A"]).answers;
    let found = until(Duration::from_secs(10), &format!("{name} is a name of the mesh"), asked, |answers| {
        answers.iter().any(|answer| answer.starts_with("A 240.240."))
    });
    found[0].trim_start_matches("A ").to_owned()
}

/// A request to a name at its virtual address; head and body.
#[track_caller]
fn get(pod: &Pod, name: &str, port: u16) -> Reply {
    let at = format!("{name}:{port}:{}", vip(pod, name));
    curl(pod, &["-i", "--resolve", &at, &format!("http://{name}:{port}/")])
}

/// An HTTP port at which the agent speaks TLS with port `target`.
fn originated(target: u16, more: &str, ca: &Authority) -> Vec<String> {
    let mut lines = vec![
        "ports:".to_owned(),
        format!("- name: p{target}"),
        format!("  port: {target}"),
        "  protocol: http".to_owned(),
        format!("  tls: {{mode: originate, {more}caFile: {}}}", ca.file()),
    ];
    lines.retain(|line| !line.is_empty());
    lines
}

fn apply(mesh: &Mesh, name: &str, head: &str, ports: &[String]) {
    let lines: Vec<&str> = std::iter::once(head).chain(ports.iter().map(String::as_str)).collect();
    mesh.apply(&external(name, &lines));
}

fn originations(mesh: &Mesh, outcome: &str) -> u64 {
    mesh.node(1).metrics().count("mesh_tls_originated_total", &[("outcome", outcome)])
}

#[test]
fn a_name_outside_is_called_plainly_and_hears_tls() {
    let conf = ResolvConf::new("name");
    let mesh = conf.mesh().up();
    let dns = mesh.pod(1, "dns").outside().up();
    assert_eq!(dns.ip().to_string(), DNS);
    let api = mesh.pod(2, "api").outside().up();
    let ca = Authority::new(api.work(), "public");
    let _nginx = tls_nginx(&api, 8443, &ca.issue("api", "DNS:api.example", 30), None);
    let second = mesh.pod(2, "second").outside().up();
    let _second = tls_nginx(&second, 8443, &ca.issue("second", "DNS:api.example", 30), None);
    let records = |pod: &Pod| format!("--host-record=api.example,{},{}", pod.ip(), pod.ip6());
    let server = resolver(&dns, &[&records(&api), "--host-record=www.example,192.0.2.7"]);
    let client = mesh.pod(1, "client").up();
    let text = ca.pem("      ");
    mesh.apply(&external(
        "api",
        &[
            "hosts: [api.example]",
            "ports:",
            "- name: http",
            "  port: 80",
            "  targetPort: 8443",
            "  protocol: http",
            &format!(
                "  tls:\n      mode: originate\n      caBundle: |\n{}",
                text.replace("      ", "        ")
            ),
        ],
    ));
    let reply =
        until(Duration::from_secs(15), "it answers", || get(&client, "api.example", 80), |r| r.status == 200);
    assert_eq!((reply.field("name"), reply.field("tls")), ("api", "TLSv1.3"), "{reply:?}");
    assert_eq!((reply.field("sni"), reply.field("http")), ("api.example", "HTTP/1.1"));
    // As programs do it, by their own resolver; other names are others' business.
    let ask = ["curl", "-s", "--max-time", "5", "http://api.example/"];
    let page = with_resolv_conf(&client, &format!("nameserver {DNS}\n"), &ask).unwrap();
    assert!(page.contains("name=api"), "{page}");
    assert_eq!(dig(&client, dns.ip(), &["www.example", "A"]).answers, ["A 192.0.2.7"]);
    assert_eq!(dig(&dns, dns.ip(), &["api.example", "A"]).answers, [format!("A {}", api.ip())]);
    // Its connections are kept.
    let before = originations(&mesh, "ok");
    let at = format!("http://{}/", vip(&client, "api.example"));
    let replies = mesh_tests::programs::curl_many(&client, &at, 200);
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert!(originations(&mesh, "ok") <= before + 4);
    // A body that is larger than any buffer.
    let body: Vec<u8> = (0..3_000_017u32).map(|i| (i % 251) as u8).collect();
    fs::write(api.work().join("files/big"), &body).unwrap();
    assert_eq!(curl(&client, &["-o", "got", &format!("{at}files/big")]).status, 200);
    assert!(fs::read(client.work().join("got")).unwrap() == body, "the body came through changed");
    // What it resolves to is followed; what nobody knows any more is kept, also by the next agent.
    drop(server);
    let server = resolver(&dns, &[&records(&second)]);
    within(Duration::from_secs(30), "the other address is used", || {
        get(&client, "api.example", 80).name() == "second"
    });
    drop(server);
    let failed = "host name api.example of an ExternalService";
    within(Duration::from_secs(40), "it is said that nobody answers", || {
        mesh.meshctl(&["status"], "").contains(failed)
    });
    assert_eq!(curl(&client, &[&at]).name(), "second");
    let node = mesh.node(1);
    assert!(node.metrics().count("mesh_external_lookups_total", &[("outcome", "failed")]) > 0);
    node.kill_agent();
    node.start_agent();
    node.wait_ready();
    eventually("what was known is kept", || curl(&client, &[&at]).name() == "second");
}

#[test]
fn who_is_not_who_was_expected_hears_nothing() {
    let mesh = Mesh::builder().nodes(2).up();
    let dns = mesh.pod(1, "dns").outside().up();
    let _dns = resolver(&dns, &[]);
    let api = mesh.pod(2, "api").outside().up();
    let (ca, other) = (Authority::new(api.work(), "public"), Authority::new(api.work(), "other"));
    let good = ca.issue("good", "DNS:api.example,DNS:other.example", 30);
    let servers = [
        tls_nginx(&api, 8001, &good, None),
        tls_nginx(&api, 8002, &ca.issue("name", "DNS:else.example", 30), None),
        tls_nginx(&api, 8003, &ca.issue("old", "DNS:api.example", -1), None),
        tls_nginx(&api, 8004, &other.issue("unknown", "DNS:api.example", 30), None),
    ];
    let _plain = nginx(&api, &[8005]);
    let client = mesh.pod(1, "client").up();
    let address = format!("addresses: [{}]", api.ip());
    for (port, name) in [(8001, "good"), (8002, "name"), (8003, "old"), (8004, "unknown"), (8005, "plain")] {
        let head = format!("hosts: [{name}.example]\n  {address}");
        apply(&mesh, name, &head, &originated(port, "sni: api.example, ", &ca));
    }
    let reply = until(
        Duration::from_secs(15),
        "it answers",
        || get(&client, "good.example", 8001),
        |r| r.status == 200,
    );
    assert_eq!(reply.field("sni"), "api.example");
    for (port, name, reason, outcome) in [
        (8002, "name", "tls_peer_untrusted", "wrong_name"),
        (8003, "old", "tls_peer_untrusted", "expired"),
        (8004, "unknown", "tls_peer_untrusted", "unknown_ca"),
        (8005, "plain", "tls_origination_failed", "failed"),
    ] {
        let reply = get(&client, &format!("{name}.example"), port);
        assert_eq!(reply.status, 503, "{name}: {reply:?}");
        assert!(reply.body.contains(&format!("x-mesh-reason: {reason}")), "{name}: {reply:?}");
        assert!(originations(&mesh, outcome) > 0, "{name}: {outcome}");
    }
    assert!(mesh.node(1).log().contains("no TLS with an external service"));
    // A name that is expected instead.
    let sans = "sni: api.example, subjectAltNames: [no.example, other.example], ";
    apply(&mesh, "good", &format!("hosts: [good.example]\n  {address}"), &originated(8001, sans, &ca));
    eventually("one of several names", || get(&client, "good.example", 8001).status == 200);
    let sans = "sni: api.example, subjectAltNames: [no.example], ";
    apply(&mesh, "good", &format!("hosts: [good.example]\n  {address}"), &originated(8001, sans, &ca));
    eventually("connections of before are not used again", || {
        get(&client, "good.example", 8001).body.contains("tls_peer_untrusted")
    });
    // Without the agent: nothing goes out plainly.
    let at = format!("http://{}:8005/", vip(&client, "plain.example"));
    let node = mesh.node(1);
    node.kill_agent();
    let before = node.verdict(Verdict::ProxyLost);
    let reply = curl(&client, &[&at]);
    assert_eq!((reply.status, reply.exit), (0, 7), "{reply:?}");
    assert!(node.verdict(Verdict::ProxyLost) > before);
    drop(servers);
}

/// Sends a line, prints what comes back.
const LINE: &str = "import socket, sys\n\
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)\n\
    s.sendall(b'a line\\n')\n\
    print(s.makefile().readline().strip())";

fn line(pod: &Pod, at: &str, port: u16) -> String {
    pod.run("/usr/bin/python3", &["-c", LINE, at, &port.to_string()]).unwrap_or_default().trim().to_owned()
}

#[test]
fn opaque_bytes_go_in_tls_too_and_a_workload_shows_who_it_is() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let dns = mesh.pod(1, "dns").outside().up();
    let _dns = resolver(&dns, &[]);
    let api = mesh.pod(2, "api").outside().up();
    let ca = Authority::new(api.work(), "public");
    let own = ca.issue("api", "DNS:api.example", 30);
    let roots = mesh.fabric().data().join("ca.pem");
    let _open = reverser(&api, 9001, &own, &["-tls1_2"]);
    let asks = ["-Verify", "4", "-verify_return_error", "-CAfile", &roots.to_string_lossy()];
    let asking = reverser(&api, 9002, &own, &asks);
    let client = mesh.pod(1, "client").account("pay").up();
    let tls = |more: &str| format!("{{mode: originate, caFile: {}{more}}}", ca.file());
    mesh.apply(&external(
        "api",
        &[
            "hosts: [api.example]",
            &format!("addresses: [{}]", api.ip()),
            &format!("ports: [{{name: open, port: 9001, tls: {}}}, {{name: asks, port: 9002, tls: {}}}, {{name: shows, port: 9003, targetPort: 9002, tls: {}}}]",
                tls(""), tls(""), tls(", clientCertificate: mesh")),
        ],
    ));
    let at = vip(&client, "api.example");
    for port in [9001, 9003] {
        eventually(&format!("port {port} answers in TLS"), || line(&client, &at, port) == "enil a");
    }
    assert_eq!(line(&client, &at, 9002), "", "nobody is shown");
    assert!(
        asking.log().contains("spiffe://") || asking.log().contains("verify return:1"),
        "{}",
        asking.log()
    );
    // Its own address is as it is: nobody speaks TLS for the workload there.
    assert_eq!(line(&client, &api.ip().to_string(), 9001), "");
}

#[test]
fn tls_of_workloads_passes_untouched_to_the_outside_and_across_nodes() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    let dns = mesh.pod(1, "dns").outside().up();
    let _dns = resolver(&dns, &[]);
    let api = mesh.pod(2, "api").outside().up();
    let ca = Authority::new(api.work(), "public");
    let clients = Authority::new(api.work(), "clients");
    let own = ca.issue("web", "DNS:web.example", 30);
    let shown = clients.issue("somebody", "DNS:somebody.example", 30);
    let _outside = tls_nginx(&api, 8443, &own, Some(&clients));
    mesh.apply(&Service::vip("web", 1).port("tls", 443, "tls", "kernel").yaml());
    let mut web = mesh.pod(2, "web-0").serves("web", "tls", 8443).outside().up();
    let _web = tls_nginx(&web, 8443, &own, Some(&clients));
    web.enrol();
    let client = mesh.pod(1, "client").up();
    let addresses = format!("addresses: [{}]", api.ip());
    let port = "ports: [{port: 443, targetPort: 8443, protocol: tls}]";
    mesh.apply(&external("api", &["hosts: [web.example]", &addresses, port]));
    let outside = vip(&client, "web.example");
    let ask = |at: &str, with: bool| {
        let resolve = format!("web.example:443:{at}");
        let url = "https://web.example/";
        let (ca, cert, key) = (ca.file(), &shown.cert, &shown.key);
        let plain = ["-v", "--cacert", &ca, "--resolve", &resolve, url];
        let own = ["--cert", cert.as_str(), "--key", key];
        if with { curl(&client, &[&plain[..], &own].concat()) } else { curl(&client, &plain) }
    };
    let inside = vip4(1).to_string();
    for mode in ["permissive", "strict"] {
        mesh.apply(&mesh_mtls(mode));
        for (at, name) in [(&outside, "api"), (&inside, "web-0")] {
            let reply = until(Duration::from_secs(15), "it answers", || ask(at, true), |r| r.status == 200);
            assert_eq!((reply.name(), reply.field("client")), (name, "CN=somebody"), "{mode}: {reply:?}");
            // The server's own certificate, end to end.
            assert!(reply.error.contains("CN=web") && reply.error.contains("CN=public"), "{mode}: {reply:?}");
            assert_eq!(ask(at, false).status, 400, "{mode}: nobody else's certificate is shown for it");
        }
    }
    let tunnels = mesh.node(1).metrics().count("mesh_hbone_handshakes_total", &[("outcome", "ok")]);
    assert!(tunnels > 0, "between nodes inside of tunnels");
}

#[test]
fn names_that_two_have_are_the_older_ones() {
    let mesh = Mesh::builder().nodes(1).up();
    let dns = mesh.pod(1, "dns").outside().up();
    let _dns = resolver(&dns, &[]);
    let first = mesh.pod(1, "first").outside().up();
    let _first = line_server(&first, 7000);
    let client = mesh.pod(1, "client").up();
    mesh.apply(&Service::vip("web", 1).tcp("tcp", 80).yaml());
    let port = "ports: [{port: 80, targetPort: 7000}]";
    mesh.apply(&external("old", &["hosts: [api.example]", &format!("addresses: [{}]", first.ip()), port]));
    let before = vip(&client, "api.example");
    let taken = format!("addresses: [{}]", vip4(1));
    mesh.apply(&external("new", &["hosts: [api.example, new.example]", &taken, port]));
    let shown = mesh.meshctl(&["get", "externalservices"], "");
    for words in [
        "api.example is a name of the older ExternalService default/old",
        "virtual address of Service default/web",
    ] {
        assert!(shown.contains(words), "no {words:?} in: {shown}");
    }
    vip(&client, "new.example");
    assert_eq!(vip(&client, "api.example"), before);
    eventually("the node says so, too", || {
        let status = mesh.meshctl(&["status"], "");
        status.contains("ExternalService default/new") && status.contains("older ExternalService default/old")
    });
    let error = format!(
        "{:#}",
        mesh.try_meshctl(&["apply", "-f", "-"], &external("web", &["hosts: [w.example]", port])).unwrap_err()
    );
    assert!(error.contains("Service default/web has it"), "{error}");
    mesh.meshctl(&["delete", "externalservice", "old"], "");
    eventually("the other one has it now", || vip(&client, "api.example") != before);
    mesh.apply(&mesh_egress("allowList"));
    eventually("what is gone is on no list", || {
        let said = mesh_tests::programs::connect_lines(&client, (first.ip(), 7000).into(), 1);
        said.errors.contains_key(REFUSED)
    });
}
