//! Names: workloads ask the resolvers that they know, the agent answers for the mesh, the rest goes there as it is.

use std::{net::IpAddr, time::Duration};

use mesh_tests::{
    Mesh, Pod,
    dns::{Dug, dig, echo, python, resolver, with_resolv_conf},
    eventually,
    eventually::until,
    load::Load,
    process::Process,
    resources::{Service, at, vip4, vip6},
    udp::{Sockets, udp_server},
    within,
};

use crate::words::{flows, settled, web};

/// What dnsmasq of a resolver's pod knows.
const RECORDS: [&str; 4] = [
    "--host-record=www.example,192.0.2.7,2001:db8::7",
    "--local=/example/",
    "--local=/mesh/",
    "--txt-record=small.example,little",
];

/// Questions of this outcome that node 1 has counted.
fn counted(mesh: &Mesh, outcome: &str) -> u64 {
    mesh.node(1).metrics().count("mesh_dns_questions_total", &[("outcome", outcome)])
}

/// A pod outside the mesh with dnsmasq.
#[track_caller]
fn named(mesh: &Mesh, name: &str, more: &[&str]) -> (Pod, Process) {
    let pod = mesh.pod(1, name).outside().up();
    let server = resolver(&pod, &[&RECORDS[..], more].concat());
    (pod, server)
}

/// Waits until `name` has these answers of `kind`.
#[track_caller]
fn known(client: &Pod, server: impl Into<IpAddr> + Copy, name: &str, kind: &str, want: &[String]) -> Dug {
    let what = format!("{} says that {name} {kind} is {want:?}", server.into());
    let asked = || dig(client, server, &[name, kind]);
    until(Duration::from_secs(10), &what, asked, |dug| dug.answers == want)
}

#[test]
fn names_of_the_mesh_are_answered_whoever_is_asked() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).tcp("raw", 81).yaml());
    mesh.apply(&Service::headless("log").udp("lines", 9000).yaml());
    let (dns, server) = named(&mesh, "dns", &[]);
    let log = mesh.pod(2, "log-0").serves("log", "lines", 9000).up();
    let client = mesh.pod(1, "client").up();

    for at in [IpAddr::from(dns.ip()), dns.ip6().into()] {
        let first = known(&client, at, "shop.default.mesh", "A", &[format!("A {}", vip4(1))]);
        assert_eq!((&*first.status, &*first.flags), ("NOERROR", "qr aa rd ra"), "{first:?}");
        assert_eq!(first.server, format!("{at}#53"), "who was asked answers");
        known(&client, at, "log.default.mesh", "AAAA", &[format!("AAAA {}", log.ip6())]);
        known(&client, at, "log-0.log.default.mesh", "A", &[format!("A {}", log.ip())]);
        for more in [&["+notcp"][..], &["+tcp"], &["+tcp", "+keepopen"], &["+noedns"]] {
            let ask = |name: &str, kind: &str| dig(&client, at, &[&[name, kind], more].concat());
            assert_eq!(ask("shop.default.mesh", "AAAA").answers, [format!("AAAA {}", vip6(1))]);
            let srv = ask("_raw._tcp.shop.default.mesh", "SRV");
            assert_eq!(srv.answers, ["SRV 0 1 81 shop.default.mesh."], "{srv:?}");
            assert!(srv.text.contains(&vip4(1).to_string()), "its address comes with it: {srv:?}");
            let srv = ask("_lines._udp.log.default.mesh", "SRV");
            assert_eq!(srv.answers, ["SRV 0 1 9000 log-0.log.default.mesh."], "{srv:?}");
            let none = ask("gone.default.mesh", "A");
            assert_eq!((&*none.status, none.authority.len()), ("NXDOMAIN", 1), "{none:?}");
            assert!(none.authority[0].starts_with("SOA ns.dns.mesh."), "{none:?}");
            let other = ask("shop.default.mesh", "TXT");
            assert_eq!((&*other.status, other.answers.len()), ("NOERROR", 0), "{other:?}");
            let odd = ask("sHoP.DeFaUlT.mEsH", "A");
            assert!(odd.question.starts_with(";sHoP.DeFaUlT.mEsH."), "{odd:?}");
            assert_eq!(odd.answers, [format!("A {}", vip4(1))]);
            assert_eq!(ask("www.example", "A").answers, ["A 192.0.2.7"]);
        }
    }
    let log = server.log();
    assert!(log.contains("www.example"), "{log}");
    assert!(!log.contains(".mesh"), "the resolver was asked for the mesh's names: {log}");
    // dig asks as a stranger would: it is no one's business whether the pod is in a mesh.
    let outside = mesh.pod(1, "outside").outside().up();
    assert_eq!(dig(&outside, dns.ip(), &["shop.default.mesh"]).status, "NXDOMAIN");
}

/// Prints the addresses that the system's resolver finds.
const FIND: &str = "import socket, sys\n\
    print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80)}))";

#[test]
fn programs_find_services_through_their_resolv_conf() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    mesh.apply(&Service::vip("raw", 2).tcp("tcp", 80).yaml());
    let (dns, _server) = named(&mesh, "dns", &[]);
    let _shop = web(&mesh, 2, "shop-a", "shop", "http", 1);
    let _raw = web(&mesh, 2, "raw-a", "raw", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["shop-a"]);
    settled(&client, at(vip4(2), 80), &["raw-a"]);
    for at in [IpAddr::from(dns.ip()), dns.ip6().into()] {
        for options in ["", "options use-vc\n", "options edns0 single-request\n"] {
            let conf = format!("nameserver {at}\nsearch default.mesh mesh\n{options}");
            let run = |program: &[&str]| {
                with_resolv_conf(&client, &conf, program).unwrap_or_else(|error| panic!("{conf}: {error:#}"))
            };
            for name in ["shop", "shop.default", "shop.default.mesh"] {
                let found = run(&["getent", "ahosts", name]);
                assert!(found.contains(&vip4(1).to_string()), "{name} {found}");
                assert!(found.contains(&vip6(1).to_string()), "{name} {found}");
            }
            let found = run(&["/usr/bin/python3", "-c", FIND, "raw"]);
            assert_eq!(found, format!("{} {}", vip4(2), vip6(2)));
            assert_eq!(run(&["/usr/bin/python3", "-c", FIND, "www.example"]), "192.0.2.7 2001:db8::7");
            for (name, server) in [("shop", "shop-a"), ("raw.default.mesh", "raw-a")] {
                let page = run(&["curl", "-s", "--max-time", "5", &format!("http://{name}/")]);
                assert!(page.contains(&format!("name={server}")), "{name}: {page}");
            }
        }
    }
    assert_eq!(counted(&mesh, "failed"), 0);
}

/// Sends messages over each kind of socket, and says what of them comes back and from where.
const MESSAGES: &str = r"
import os, random, socket, sys
name, address, mapped = sys.argv[1].encode(), sys.argv[2], len(sys.argv) > 3
family = socket.AF_INET6 if ':' in address or mapped else socket.AF_INET
to = ('::ffff:' + address if mapped else address, 53)
update = bytes.fromhex('abcd2800000100000001000007') + b'example\0\0\6\0\1' + os.urandom(300)
messages = [update, b'xy', b'xy?', os.urandom(700), b'\x12\x34' + os.urandom(9000), b'\x12\x34' + bytes(20000)]
messages += [os.urandom(random.randrange(3, 600)) for _ in range(20)]
messages = [m for m in messages if m[2:3] != b'S']
def same(sent, heard):
    assert heard == sent[:2] + name + b'|' + sent[2:], (sent[:40], heard[:40], len(sent), len(heard))
free, kept = socket.socket(family, socket.SOCK_DGRAM), socket.socket(family, socket.SOCK_DGRAM)
kept.connect(to)
assert kept.getpeername()[:2] == to, kept.getpeername()
own = socket.socket(family, socket.SOCK_DGRAM)
probe = socket.socket(family, socket.SOCK_DGRAM)
probe.connect((to[0], 9))
own.bind((probe.getsockname()[0], 0))
for s in (free, kept, own):
    s.settimeout(4)
    for message in messages:
        if s is kept:
            s.send(message)
        else:
            s.sendto(message, to)
        heard, peer = s.recvfrom(65536)
        same(message, heard)
        assert peer[:2] == to, peer
t = socket.create_connection(to, 4)
assert t.getpeername()[:2] == to, t.getpeername()
framed = lambda m: len(m).to_bytes(2, 'big') + m
t.sendall(b''.join(map(framed, messages)))
f = t.makefile('rb')
for message in messages:
    same(message, f.read(int.from_bytes(f.read(2), 'big')))
print('same')
";

#[test]
fn what_others_know_goes_there_and_back_byte_for_byte() {
    let mesh = Mesh::builder().up();
    let dns = mesh.pod(1, "dns").outside().up();
    let _server = echo(&dns);
    let client = mesh.pod(1, "client").up();
    let (v4, v6) = (dns.ip().to_string(), dns.ip6().to_string());
    for args in [&["dns", &*v4][..], &["dns", &v6], &["dns", &v4, "mapped"]] {
        let said = python(&client, MESSAGES, args).unwrap_or_else(|error| panic!("{args:?}: {error:#}"));
        assert_eq!(said, "same", "{args:?}");
    }
    assert!(counted(&mesh, "forwarded") >= 3 * 4 * 20, "they went through the agent");
    assert_eq!((counted(&mesh, "failed"), counted(&mesh, "answered")), (0, 0));
}

#[test]
fn large_answers_are_the_resolvers_own() {
    let mesh = Mesh::builder().up();
    let word = "x".repeat(250);
    let large: Vec<String> = (0..10).map(|i| format!("--txt-record=large.example,{i}{word}")).collect();
    let large: Vec<&str> = large.iter().map(String::as_str).collect();
    let (dns, _server) = named(&mesh, "dns", &large);
    let client = mesh.pod(1, "client").up();
    for at in [IpAddr::from(dns.ip()), dns.ip6().into()] {
        // Of the same size whoever asks: nothing is unpacked on the way.
        let outside = mesh.pod(1, &format!("outside-{}", at.is_ipv6())).outside().up();
        for more in
            [&["+bufsize=4096"][..], &["+bufsize=1232", "+ignore"], &["+noedns", "+ignore"], &["+tcp"], &[]]
        {
            let ask = |pod: &Pod| {
                let dug = dig(pod, at, &[&["large.example", "TXT", "+nocookie"], more].concat());
                let size = dug.text.lines().find(|line| line.starts_with(";; MSG SIZE")).map(str::to_owned);
                (dug.status, dug.flags, dug.answers, dug.server, size)
            };
            let (inside, outside) = (ask(&client), ask(&outside));
            assert_eq!(inside, outside, "{more:?}");
            assert_eq!(inside.0, "NOERROR", "{more:?}");
        }
        let whole = dig(&client, at, &["large.example", "TXT", "+bufsize=4096", "+notcp"]);
        assert_eq!(whole.answers.len(), 10, "{whole:?}");
    }
    assert!(counted(&mesh, "forwarded") >= 12);
}

/// One socket, not connected: asks every resolver at once, as musl does, and says who answered what.
const SEVERAL: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(4)
servers = [pair.split('=') for pair in sys.argv[1:]]
name = dict((address, n) for n, address in servers)
for turn in range(50):
    for i, (n, address) in enumerate(servers):
        s.sendto(bytes([turn, i]) + n.encode(), ('::ffff:' + address if '.' in address else address, 53))
    for _ in servers:
        heard, peer = s.recvfrom(65536)
        n = name[peer[0].removeprefix('::ffff:')]
        assert heard[2:] == f'{n}|{n}'.encode(), (heard, peer)
        assert servers[heard[1]][0] == n, (heard, peer)
print('right')
";

#[test]
fn one_socket_asks_several_resolvers_and_hears_each() {
    let mesh = Mesh::builder().up();
    let servers: Vec<(Pod, Process)> = (0..5)
        .map(|i| {
            let pod = mesh.pod(1, &format!("dns-{i}")).outside().up();
            let server = echo(&pod);
            (pod, server)
        })
        .collect();
    let client = mesh.pod(1, "client").up();
    let all: [&dyn Fn(&Pod) -> IpAddr; 2] = [&|pod| pod.ip().into(), &|pod| pod.ip6().into()];
    for address in all {
        for count in [2, 3, 5] {
            let args: Vec<String> =
                servers[..count].iter().map(|(pod, _)| format!("{}={}", pod.name(), address(pod))).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let before = counted(&mesh, "forwarded");
            assert_eq!(python(&client, SEVERAL, &args).map_err(|e| format!("{e:#}")), Ok("right".to_owned()));
            // As many as a resolv.conf names go through the agent.
            let through = counted(&mesh, "forwarded") - before;
            assert_eq!(through, 50 * count.min(3) as u64, "{args:?}");
        }
    }
    assert_eq!(counted(&mesh, "failed"), 0);
}

#[test]
fn without_an_agent_questions_go_to_the_resolver() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("shop", 1).tcp("tcp", 80).yaml());
    let (dns, _server) = named(&mesh, "dns", &[]);
    let other = mesh.pod(1, "plain").outside().up();
    let _plain = udp_server(&other, 53);
    let client = mesh.pod(1, "client").up();
    let vip = [format!("A {}", vip4(1))];
    known(&client, dns.ip(), "shop.default.mesh", "A", &vip);
    let asks = |more: &[&str]| {
        for at in [IpAddr::from(dns.ip()), dns.ip6().into()] {
            let dug = dig(&client, at, &[&["www.example", "A"], more].concat());
            assert_eq!(dug.answers, ["A 192.0.2.7"], "{at} {more:?}: {}", dug.text);
        }
    };
    let to = at(other.ip(), 53);
    let mut sockets = Sockets::of(&client);
    assert_eq!(sockets.ask(0, to).map(|heard| heard.from), Ok(to));
    assert_eq!(sockets.connect(1, to), Ok(to));
    assert_eq!(sockets.say(1).map(|heard| heard.from), Ok(to));

    mesh.node(1).kill_agent();
    // The resolver knows nothing of the mesh, and everything else.
    assert_eq!(dig(&client, dns.ip(), &["shop.default.mesh"]).status, "NXDOMAIN");
    for more in [&["+notcp"][..], &["+tcp"]] {
        asks(more);
    }
    assert_eq!(sockets.ask(0, to).map(|heard| (heard.from, heard.name)), Ok((to, "plain".to_owned())));
    // A connected socket is told that nobody is there any more; its owner connects again, as resolvers' clients do.
    assert_eq!(sockets.say(1).map(|heard| heard.from), Err("ECONNREFUSED".to_owned()));
    assert_eq!(sockets.connect(1, to), Ok(to));
    assert_eq!(sockets.say(1).map(|heard| heard.from), Ok(to));
    mesh.node(1).start_agent();
    mesh.node(1).wait_ready();
    known(&client, dns.ip(), "shop.default.mesh", "A", &vip);
    for socket in [0, 1] {
        assert_eq!(sockets.ask(socket, to).map(|heard| heard.from), Ok(to), "{socket}");
    }

    // Stopped, not dead: after half a second nobody waits for it.
    mesh.node(1).signal_agent(rustix::process::Signal::STOP);
    within(Duration::from_secs(5), "the stopped agent is passed by", || {
        dig(&client, dns.ip(), &["www.example"]).answers == ["A 192.0.2.7"]
    });
    asks(&["+tcp"]);
    mesh.node(1).signal_agent(rustix::process::Signal::CONT);
    known(&client, dns.ip(), "shop.default.mesh", "A", &vip);
}

#[test]
fn names_come_and_go_with_their_services() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::headless("log").udp("lines", 9000).yaml());
    let (dns, _server) = named(&mesh, "dns", &[]);
    let client = mesh.pod(1, "client").up();
    known(&client, dns.ip(), "log.default.mesh", "SOA", &[]);
    let second = Duration::from_secs(1);
    for turn in 1..=3 {
        mesh.apply(&Service::vip("late", turn).tcp("tcp", 80).yaml());
        within(second, "the new service has a name", || {
            dig(&client, dns.ip(), &["late.default.mesh"]).answers == [format!("A {}", vip4(turn))]
        });
        mesh.meshctl(&["delete", "service", "late"], "");
        within(second, "the old one has none", || {
            dig(&client, dns.ip(), &["late.default.mesh"]).status == "NXDOMAIN"
        });
    }
    let pod = mesh.pod(1, "log-0").serves("log", "lines", 9000).up();
    let _server = udp_server(&pod, 9000);
    known(&client, dns.ip(), "log.default.mesh", "A", &[format!("A {}", pod.ip())]);
    pod.leave();
    known(&client, dns.ip(), "log.default.mesh", "A", &[]);
}

#[test]
fn a_resolver_may_be_a_service_or_on_loopback() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("dns", 1).udp("dns", 53).tcp("dns-tcp", 53).yaml());
    let mut pod = mesh.pod(2, "dns").serves("dns", "dns", 53).serves("dns", "dns-tcp", 53).outside().up();
    let _server = resolver(&pod, &RECORDS);
    pod.enrol();
    let client = mesh.pod(1, "client").up();
    let own = [format!("A {}", vip4(1))];
    // A forwarder of the pod's own, as Docker has one: it asks the service, and both are asked through the agent.
    let upstream = format!("--server={}", vip4(1));
    let _local = resolver(&client, &["--listen-address=127.0.0.11,::1", "--bind-interfaces", &upstream]);
    for at in
        [IpAddr::from(vip4(1)), vip6(1).into(), [127, 0, 0, 11].into(), std::net::Ipv6Addr::LOCALHOST.into()]
    {
        known(&client, at, "dns.default.mesh", "A", &own);
        for more in [&["+notcp"][..], &["+tcp"]] {
            eventually(&format!("{at} {more:?} answers"), || {
                dig(&client, at, &[&["www.example"], more].concat()).answers == ["A 192.0.2.7"]
            });
            assert_eq!(dig(&client, at, &[&["dns.default.mesh"], more].concat()).answers, own);
        }
    }
    assert!(
        flows(mesh.node(1), "opened", "dns:53", "kernel") > 0,
        "the service was asked as one of the mesh"
    );
    // Its own answers are not taken for questions, wherever they go.
    let asker = mesh.pod(2, "asker").outside().up();
    let from_53 = dig(&asker, pod.ip(), &["www.example", "-b", &format!("{}#53", asker.ip())]);
    assert_eq!(from_53.answers, ["A 192.0.2.7"], "{from_53:?}");
}

/// Sends so many questions at once, and counts those that are refused at once.
const FLOOD: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
question = lambda i: i.to_bytes(2, 'big') + bytes.fromhex('53000001000000000000') + b'\3www\7example\0\0\1\0\1'
refused = 0
for i in range(int(sys.argv[2])):
    s.sendto(question(i), (sys.argv[1], 53))
    s.settimeout(0 if i % 50 else 0.02)
    try:
        while True:
            heard = s.recvfrom(4096)[0]
            assert heard[3] & 15 == 2, heard
            refused += 1
    except (TimeoutError, BlockingIOError):
        pass
s.settimeout(1)
try:
    while True:
        s.recvfrom(4096)
        refused += 1
except TimeoutError:
    print(refused)
";

#[test]
fn questions_that_wait_are_bounded() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("shop", 1).tcp("tcp", 80).yaml());
    let silent = mesh.pod(1, "silent").outside().up();
    let _server = echo(&silent);
    let client = mesh.pod(1, "client").up();
    let other = mesh.pod(1, "other").up();
    known(&client, silent.ip(), "shop.default.mesh", "A", &[format!("A {}", vip4(1))]);
    let refused = python(&client, FLOOD, &[&silent.ip().to_string(), "1500"]).expect("a flood");
    assert_eq!(refused, (1500 - 1024).to_string());
    assert_eq!(counted(&mesh, "refused"), 1500 - 1024);
    // The mesh still answers, and others are not concerned.
    known(&client, silent.ip(), "shop.default.mesh", "A", &[format!("A {}", vip4(1))]);
    assert_eq!(python(&other, MESSAGES, &["silent", &silent.ip().to_string()]).expect("answers"), "same");
    within(Duration::from_secs(10), "those that wait are given up", || counted(&mesh, "failed") == 1024);
    assert_eq!(mesh.node(1).metrics().count("mesh_proxy_open", &[]), 0);
}

#[test]
fn an_agent_may_leave_names_alone() {
    let mesh = Mesh::builder().agent_args(&["--no-dns"]).up();
    mesh.apply(&Service::vip("shop", 1).tcp("tcp", 80).yaml());
    let (dns, _server) = named(&mesh, "dns", &[]);
    let _shop = web(&mesh, 1, "shop-a", "shop", "tcp", 1);
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["shop-a"]);
    for more in [&["+notcp"][..], &["+tcp"]] {
        assert_eq!(dig(&client, dns.ip(), &[&["shop.default.mesh"], more].concat()).status, "NXDOMAIN");
        assert_eq!(dig(&client, dns.ip(), &[&["www.example"], more].concat()).answers, ["A 192.0.2.7"]);
    }
    assert_eq!(counted(&mesh, "answered") + counted(&mesh, "forwarded"), 0);
    assert_eq!(Load::to(at(vip4(1), 80)).count(20).run(&client).failed(), 0);
}

/// Asks for a name of the mesh and for another, over new sockets, as fast as it goes, until it is told to end. A
/// question may be asked twice, as resolvers' clients do; prints how many were asked, and how many of them twice.
const STREAM: &str = r"
import os, socket, sys
def message(name):
    labels = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.'))
    return os.urandom(2) + bytes.fromhex('01000001000000000000') + labels + bytes.fromhex('0000010001')
def ask(question, connected):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        if connected:
            s.connect((sys.argv[1], 53))
            s.send(question)
        else:
            s.sendto(question, (sys.argv[1], 53))
        heard = s.recv(4096)
        assert heard[:2] == question[:2] and heard[3] & 15 == 0 and heard[7] == 1, heard
asked = again = 0
print('begun', flush=True)
while not os.path.exists('end'):
    for name in ('shop.default.mesh', 'www.example'):
        question, connected = message(name), asked % 2 == 0
        asked += 1
        try:
            ask(question, connected)
        except OSError:
            again += 1
            ask(question, connected)
print('asked', asked, again)
";

#[test]
fn agents_hand_over_while_questions_are_asked() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("shop", 1).tcp("tcp", 80).yaml());
    let (dns, _server) = named(&mesh, "dns", &[]);
    let client = mesh.pod(1, "client").up();
    known(&client, dns.ip(), "shop.default.mesh", "A", &[format!("A {}", vip4(1))]);
    let mut stream = client.start("stream", "/usr/bin/python3", &["-c", STREAM, &dns.ip().to_string()]);
    eventually("questions are asked", || stream.log().contains("begun"));
    for _ in 0..3 {
        assert!(mesh.node(1).hand_over().success());
        let before = counted(&mesh, "answered");
        within(Duration::from_secs(5), "the new agent answers", || counted(&mesh, "answered") > before + 20);
    }
    std::fs::write(client.work().join("end"), "").expect("end the stream");
    assert!(stream.wait(Duration::from_secs(10)).success(), "{}", stream.log());
    let log = stream.log();
    let counts: Vec<u64> = log.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // What was on its way to an agent that ends, at most one a hand-over.
    assert!(counts[0] > 100 && counts[1] <= 3, "{log}");
}
