//! Policies rule datagrams as they rule connections: each one is decided, connected sockets' too; answers come in.

use std::{net::SocketAddr, time::Duration};

use mesh_common::{maps, verdict::Verdict};
use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    resources::{Service, at, authorization, transport, vip4, vip6},
    udp::{Sockets, dig, dnsmasq, udp_server, udp_settled},
    within,
};

const REFUSED: &str = "ECONNREFUSED";

/// A pod labelled `app: db` that answers on 9000, behind port 80 of the service `db` (number 1), and on 9001,
/// which it does not declare.
fn db(mesh: &Mesh) -> (Pod, [Process; 2]) {
    mesh.apply(&Service::vip("db", 1).udp("udp", 80).yaml());
    let pod = mesh.pod(1, "db-0").label("app", "db").account("db");
    let mut pod = pod.serves("db", "udp", 9000).outside().up();
    let servers = [udp_server(&pod, 9000), udp_server(&pod, 9001)];
    pod.enrol();
    (pod, servers)
}

/// A pod of its own service account.
fn caller(mesh: &Mesh, node: u8, name: &str) -> Pod {
    mesh.pod(node, name).account(name).up()
}

fn from(account: &str) -> String {
    format!("[{{from: [{{serviceAccounts: [{account}]}}]}}]")
}

/// Every way to the database: virtual and own addresses of both families, and an undeclared port.
fn ways(db: &Pod) -> [SocketAddr; 6] {
    let own = [at(db.ip(), 9000), at(db.ip6(), 9000), at(db.ip(), 9001), at(db.ip6(), 9001)];
    let [a, b, c, d] = own;
    [at(vip4(1), 80), at(vip6(1), 80), a, b, c, d]
}

/// Asks once from a new socket.
fn once(pod: &Pod, to: SocketAddr) -> Result<String, String> {
    Sockets::of(pod).ask(0, to).map(|heard| heard.name)
}

/// Asks once from a new socket that connects.
fn once_connected(pod: &Pod, to: SocketAddr) -> Result<String, String> {
    let mut sockets = Sockets::of(pod);
    let shown = sockets.connect(0, to)?;
    assert_eq!(shown, to, "getpeername()");
    sockets.say(0).map(|heard| heard.name)
}

#[track_caller]
fn refused(pod: &Pod, to: SocketAddr) {
    let said = || [once_connected(pod, to), once_connected(pod, to)];
    eventually(&format!("{to} refuses {}", pod.name()), || {
        said() == [(); 2].map(|()| Err(REFUSED.to_owned()))
    });
}

#[test]
fn an_allowed_account_is_heard_and_others_are_refused_at_once() {
    let mesh = Mesh::builder().up();
    let (db, _servers) = db(&mesh);
    let (cart, thief) = (caller(&mesh, 1, "cart"), caller(&mesh, 1, "thief"));
    for to in ways(&db) {
        udp_settled(&thief, to, &["db-0"]);
    }
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for to in ways(&db) {
        refused(&thief, to);
        udp_settled(&cart, to, &["db-0"]);
        assert_eq!(once_connected(&cart, to), Ok("db-0".to_owned()), "{to}");
    }
    let node = mesh.node(1);
    let refused_at_once = || {
        let ways = ways(&db);
        for to in &ways[..4] {
            let mut sockets = Sockets::of(&thief);
            for _ in 0..5 {
                assert_eq!(sockets.ask(0, *to), Err(REFUSED.to_owned()), "{to}");
            }
            assert_eq!(sockets.connect(1, *to), Err(REFUSED.to_owned()), "{to}");
        }
        // At a port that is not declared, where it arrives.
        for to in &ways[4..] {
            assert!(once_connected(&thief, *to).is_err(), "{to}");
        }
    };
    let counted = || {
        let labels = [("source", "default/thief"), ("protocol", "udp"), ("verdict", "denied_by_policy")];
        node.metrics().count("mesh_flow_refused_total", &labels)
    };
    let before = (node.verdict(Verdict::DeniedByPolicy), counted());
    refused_at_once();
    // Five datagrams and a connect(), four ways; and a datagram that arrives, two ways.
    assert_eq!(node.verdict(Verdict::DeniedByPolicy), before.0 + 26);
    assert_eq!(counted(), before.1 + 24);
    eventually("the log says who, whom and why", || {
        node.log().lines().any(|line| {
            line.contains("default/thief")
                && line.contains("default/db-0")
                && line.contains("protocol=\"udp\"")
                && line.contains("allowed by no rule of AuthorizationPolicy default/db")
        })
    });
    // Its own address, by whichever socket.
    let mut sockets = Sockets::of(&cart);
    assert!(sockets.ask(0, at(db.ip(), 9001)).unwrap().peer.starts_with(&format!("{}:", cart.ip())));
    sockets.connect(1, at(db.ip6(), 9000)).unwrap();
    assert!(sockets.say(1).unwrap().peer.starts_with(&format!("{}:", cart.ip6())));
    // It does not take an agent, nor does one that comes open or close anything.
    eventually("the policy is on the node's disk", || node.has_on_disk("AuthorizationPolicy"));
    node.kill_agent();
    let held = |sockets: &mut Sockets| {
        refused_at_once();
        for to in ways(&db) {
            assert_eq!(once(&cart, to), Ok("db-0".to_owned()), "{to}");
            assert_eq!(once_connected(&cart, to), Ok("db-0".to_owned()), "{to}");
        }
        assert_eq!(sockets.say(1).map(|heard| heard.name), Ok("db-0".to_owned()));
    };
    held(&mut sockets);
    node.start_agent();
    node.wait_ready();
    held(&mut sockets);
    // A workload may always call itself.
    assert_eq!(once(&db, at(vip4(1), 80)), Ok("db-0".to_owned()));
    assert_eq!(once_connected(&db, at(db.ip6(), 9001)), Ok("db-0".to_owned()));
}

#[test]
fn a_caller_of_another_node_is_known_by_its_address() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh);
    let (one, other) = (caller(&mesh, 2, "one"), caller(&mesh, 2, "other"));
    let near = caller(&mesh, 1, "near");
    for to in ways(&db) {
        udp_settled(&other, to, &["db-0"]);
    }
    let cidrs = format!("[{{from: [{{cidrs: [{}/32, '{}/128']}}]}}]", one.ip(), one.ip6());
    mesh.apply(&authorization("db", "db", "allow", &cidrs));
    let node = mesh.node(1);
    for to in ways(&db) {
        refused(&other, to);
        refused(&near, to);
        udp_settled(&one, to, &["db-0"]);
        assert_eq!(once_connected(&one, to), Ok("db-0".to_owned()), "{to}");
    }
    let before = node.verdict(Verdict::DeniedByPolicy);
    for to in ways(&db) {
        // Kernels say only so often that a port is unreachable.
        assert!(once_connected(&other, to).is_err(), "{to}");
    }
    assert_eq!(node.verdict(Verdict::DeniedByPolicy), before + 6);
    // A range that is denied, a port that is not.
    let denied =
        format!("[{{from: [{{cidrs: [{}/32, '{}']}}], to: [{{ports: [9000]}}]}}]", other.ip(), other.ip6());
    mesh.apply(&authorization("db", "db", "deny", &denied));
    for to in ways(&db) {
        if to.port() == 9001 {
            udp_settled(&other, to, &["db-0"]);
        } else {
            refused(&other, to);
        }
        udp_settled(&one, to, &["db-0"]);
        udp_settled(&near, to, &["db-0"]);
    }
    // Nobody has proved the account of a caller of another node.
    mesh.apply(&authorization("db", "db", "allow", &from("one")));
    for to in ways(&db) {
        refused(&one, to);
    }
}

#[test]
fn a_change_holds_from_the_next_datagram_on() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh);
    let pods = [caller(&mesh, 1, "cart"), caller(&mesh, 1, "thief"), caller(&mesh, 2, "far")];
    let mut all: Vec<Sockets> = pods.iter().map(Sockets::of).collect();
    let numbered = || (0..).zip(ways(&db));
    for (pod, sockets) in pods.iter().zip(&mut all) {
        for (number, to) in numbered() {
            udp_settled(pod, to, &["db-0"]);
            sockets.ask(number, to).expect("an answer");
            sockets.connect(100 + number, to).expect("connected");
            sockets.say(100 + number).expect("an answer");
        }
    }
    let talks = |sockets: &mut Sockets, number, to| {
        sockets.ask(number, to).is_ok() && sockets.say(100 + number).is_ok()
    };
    let refused = |sockets: &mut Sockets, number, to| {
        sockets.say(100 + number).is_err() && sockets.ask(number, to).is_err()
    };
    let goes = |all: &mut [Sockets], wanted: [bool; 3]| {
        for (sockets, (pod, wanted)) in all.iter_mut().zip(pods.iter().zip(wanted)) {
            for (number, to) in numbered() {
                let what = format!("{} and {to}: {wanted}", pod.name());
                within(Duration::from_secs(10), &what, || {
                    if wanted { talks(sockets, number, to) } else { refused(sockets, number, to) }
                });
            }
        }
        // And stays so, although the server has answered them all.
        for (sockets, wanted) in all.iter_mut().zip(wanted) {
            for (number, to) in numbered() {
                let held = if wanted { talks(sockets, number, to) } else { refused(sockets, number, to) };
                assert!(held, "{to}");
            }
        }
    };
    // They have begun before there was any policy.
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    goes(&mut all, [true, false, false]);
    let cidr = format!("[{{from: [{{cidrs: [{}, '{}']}}]}}]", pods[2].ip(), pods[2].ip6());
    mesh.apply(&authorization("db", "db", "allow", &cidr));
    goes(&mut all, [false, false, true]);
    mesh.apply(&authorization("db", "db", "allow", &from("thief")));
    goes(&mut all, [false, true, false]);
    mesh.meshctl(&["delete", "authorizationpolicy", "db"], "");
    goes(&mut all, [true; 3]);
    mesh.apply(&authorization("db", "db", "deny", &from("thief")));
    goes(&mut all, [true, false, false]);
}

#[test]
fn what_a_closed_workload_asks_is_answered() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("names", 2).udp("dns", 53).tcp("dns-tcp", 53).yaml());
    let (db, _servers) = db(&mesh);
    let mut dns = mesh.pod(2, "dns").serves("names", "dns", 53).serves("names", "dns-tcp", 53).outside().up();
    let _dns = (dnsmasq(&dns, 53), udp_server(&dns, 9002));
    dns.enrol();
    let (near, stranger) = (caller(&mesh, 1, "near"), mesh.pod(1, "stranger").outside().up());
    let _servers = (udp_server(&near, 9002), udp_server(&stranger, 9002));
    let asks_all = || {
        for pod in [&dns, &near, &stranger] {
            for to in [at(pod.ip(), 9002), at(pod.ip6(), 9002)] {
                udp_settled(&db, to, &[pod.name()]);
                assert_eq!(once_connected(&db, to).as_deref(), Ok(pod.name()), "{to}");
            }
        }
        for to in [at(vip4(2), 53), at(vip6(2), 53)] {
            eventually("dig is answered", || dig(&db, to, &[]).is_ok_and(|name| name == "dns"));
        }
    };
    asks_all();
    mesh.apply(&authorization("nobody", "db", "allow", "[]"));
    for (number, to) in ways(&db).into_iter().enumerate() {
        refused(&near, to);
        refused(&dns, to);
        // It knows no virtual addresses.
        if number > 1 {
            refused(&stranger, to);
        }
    }
    asks_all();
    // From where it asked nobody else is heard.
    let mut sockets = Sockets::of(&db);
    for (number, to) in (0..).zip([at(dns.ip(), 9002), at(dns.ip6(), 9002)]) {
        let heard = sockets.ask(number, to).expect("an answer");
        let (address, port) = heard.peer.rsplit_once(':').unwrap();
        let own = at(address.parse::<std::net::IpAddr>().unwrap(), port.parse().unwrap());
        for pod in [&near, &dns, &stranger] {
            assert!(once_connected(pod, own).is_err(), "{own}");
        }
    }
    // `udp: deny` beside it closes what a policy allows.
    mesh.apply(&authorization("nobody", "db", "allow", &from("near")));
    for to in ways(&db) {
        udp_settled(&near, to, &["db-0"]);
    }
    mesh.apply(&transport("db", &["selector: {matchLabels: {app: db}}", "udp: deny"]));
    for to in ways(&db) {
        refused(&near, to);
    }
    asks_all();
}

/// Sends once from a source address, bound or by `IP_PKTINFO`, and from a port of that pod's socket.
fn send_from(pod: &Pod, source: SocketAddr, to: SocketAddr, connect: bool) -> String {
    let script = "import socket, sys, time\n\
        family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n\
        s = socket.socket(family, socket.SOCK_DGRAM)\n\
        s.bind((sys.argv[1], int(sys.argv[2])))\n\
        to = (sys.argv[3], int(sys.argv[4]))\n\
        try:\n  \
          if sys.argv[5] == 'connect':\n    \
            s.connect(to)\n    \
            s.send(b'?')\n  \
          else:\n    \
            s.sendto(b'?', to)\n  \
          print('sent')\n\
        except OSError as error:\n  print(type(error).__name__)\n";
    let how = if connect { "connect" } else { "send" };
    let args =
        [source.ip().to_string(), source.port().to_string(), to.ip().to_string(), to.port().to_string()];
    let args: Vec<&str> =
        ["-c", script].into_iter().chain(args.iter().map(String::as_str)).chain([how]).collect();
    pod.run("/usr/bin/python3", &args).unwrap().trim().to_owned()
}

#[test]
fn an_address_that_was_taken_proves_nothing() {
    let mesh = Mesh::builder().up();
    let (db, _servers) = db(&mesh);
    let cart = caller(&mesh, 1, "cart");
    let (thief, stranger) = (caller(&mesh, 1, "thief"), mesh.pod(1, "stranger").outside().up());
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    let node = mesh.node(1);
    for (source, to) in [(at(cart.ip(), 7777), at(db.ip(), 9000)), (at(cart.ip6(), 7777), at(db.ip6(), 9000))]
    {
        refused(&thief, to);
        udp_settled(&cart, to, &["db-0"]);
        let length = if to.is_ipv6() { 128 } else { 32 };
        for pod in [&thief, &stranger] {
            pod.netns().ip(&[format!("addr add {}/{length} dev eth0 nodad", source.ip())]).unwrap();
            for connect in [false, true] {
                let before = node.verdict(Verdict::DeniedByPolicy);
                let said = send_from(pod, source, to, connect);
                let wanted = if pod.name() == "thief" { "ConnectionRefusedError" } else { "sent" };
                assert_eq!(said, wanted, "{} as {source}", pod.name());
                eventually("it is refused", || node.verdict(Verdict::DeniedByPolicy) == before + 1);
            }
            pod.netns().ip(&[format!("addr del {}/{length} dev eth0", source.ip())]).unwrap();
        }
        // The switch has to learn again where it is.
        udp_settled(&cart, to, &["db-0"]);
        assert_eq!(once_connected(&cart, to), Ok("db-0".to_owned()));
    }
}

#[test]
fn an_address_that_it_was_not_enrolled_with_is_no_way_around() {
    let mesh = Mesh::builder().nodes(2).up();
    let (db, _servers) = db(&mesh);
    let (cart, far) = (caller(&mesh, 1, "cart"), caller(&mesh, 2, "far"));
    let ways = [at([10, 91, 1, 250], 9000), at([0xfd91, 0, 0, 1, 0, 0, 0, 0xfa], 9000)];
    let lines = ["addr add 10.91.1.250/24 dev eth0", "addr add fd91:0:0:1::fa/64 dev eth0 nodad"];
    db.netns().ip(&lines.map(str::to_owned)).unwrap();
    for to in ways {
        // The server answers from its first address.
        eventually("it is there", || once_connected(&cart, to) != Err(REFUSED.to_owned()));
    }
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for to in ways {
        refused(&cart, to);
        refused(&far, to);
    }
    mesh.meshctl(&["delete", "authorizationpolicy", "db"], "");
    for to in ways {
        eventually("it is open", || once_connected(&far, to) != Err(REFUSED.to_owned()));
    }
}

#[test]
fn what_a_workload_leaves_behind_proves_nothing_of_the_next() {
    let mesh = Mesh::builder().agent_args(&["--map-udp-senders", "256", "--map-udp-asked", "256"]).up();
    let (db, _servers) = db(&mesh);
    let (cart, other) = (caller(&mesh, 1, "cart"), caller(&mesh, 1, "other"));
    mesh.apply(&authorization("db", "db", "allow", "[{from: [{serviceAccounts: [cart, other]}]}]"));
    let to = at(db.ip(), 9000);
    udp_settled(&cart, to, &["db-0"]);
    udp_settled(&other, to, &["db-0"]);
    let mut held = Sockets::of(&cart);
    held.connect(0, to).expect("connected");
    held.say(0).expect("an answer");
    // More senders than the map has room for: who has been silent is looked for, and found again.
    let mut flood = Sockets::of(&other);
    for socket in 0..1000 {
        assert_eq!(flood.ask(socket, to).map(|heard| heard.name), Ok("db-0".to_owned()));
        flood.close(socket);
    }
    within(Duration::from_secs(5), "the connected socket is heard", || held.say(0).is_ok());
    let entries = || mesh.node(1).meshctl(&["status", "--kernel"]).unwrap();
    assert!(entries().contains(maps::UDP_SENDERS.name), "{}", entries());
    cart.leave();
    eventually("who has left is refused", || held.say(0) == Err(REFUSED.to_owned()));
    assert!(once(&other, to).is_ok());
}

#[test]
fn units_of_the_host_are_told_apart_by_their_neighbours() {
    let mesh = Mesh::builder().up();
    mesh.apply(&Service::vip("db", 1).udp("udp", 80).yaml());
    let pod = mesh.pod(1, "db-0").label("app", "db").account("db").on_host();
    let mut db = pod.serves("db", "udp", 9000).outside().up();
    let _servers = [udp_server(&db, 9000), udp_server(&db, 9001)];
    db.enrol();
    let unit = |name: &str| mesh.pod(1, name).account(name).on_host();
    let (cart, thief, sshd) = (unit("cart").up(), unit("thief").up(), unit("sshd").outside().up());
    let near = mesh.pod(1, "near").account("cart").up();
    let own = [at(db.ip(), 9000), at(db.ip6(), 9000)];
    let ways: Vec<SocketAddr> = [at(vip4(1), 80), at(vip6(1), 80)].into_iter().chain(own).collect();
    for to in &ways {
        udp_settled(&thief, *to, &["db-0"]);
    }
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for to in &ways {
        refused(&thief, *to);
        // The server answers a pod from the address that is nearest to it, which a connected socket does not hear.
        udp_settled(&near, *to, &["db-0"]);
        for pod in [&cart, &db] {
            udp_settled(pod, *to, &["db-0"]);
            assert_eq!(once_connected(pod, *to), Ok("db-0".to_owned()), "{to} from {}", pod.name());
        }
    }
    for to in own {
        refused(&sshd, to);
        // What it does not declare is the host's.
        for pod in [&cart, &thief, &sshd, &near] {
            udp_settled(pod, at(to.ip(), 9001), &["db-0"]);
        }
    }
}

/// Connects a socket to each client that comes, as servers of DTLS and QUIC may.
const ACCEPTING: &str = r"
import select, socket, sys
def made():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('::', int(sys.argv[2])))
    return s
def say(s, peer):
    host = peer[0].removeprefix('::ffff:')
    s.send(f'name={sys.argv[1]} peer={host}:{peer[1]}'.encode())
accepting, accepted = made(), []
while True:
    for s in select.select([accepting, *accepted], [], [])[0]:
        try:
            if s is accepting:
                _, peer = s.recvfrom(65536)
                one = made()
                one.connect(peer)
                accepted.append(one)
                say(one, peer)
            else:
                s.recv(65536)
                say(s, s.getpeername())
        except OSError:
            accepted.remove(s)
            s.close()
";

#[test]
fn a_conversation_that_a_server_has_accepted_ends_with_the_leave_for_it() {
    let mesh = Mesh::builder().nodes(2).up();
    let mut db = mesh.pod(1, "db-0").label("app", "db").account("db").outside().up();
    let _server = db.start("accepting", "/usr/bin/python3", &["-c", ACCEPTING, "db-0", "9000"]);
    db.enrol();
    let pods = [caller(&mesh, 1, "cart"), caller(&mesh, 1, "thief"), caller(&mesh, 2, "far")];
    let mut all: Vec<Sockets> = pods.iter().map(Sockets::of).collect();
    let own = [at(db.ip(), 9000), at(db.ip6(), 9000)];
    let talks = |sockets: &mut Sockets, number: u32, to| {
        sockets.ask(number, to).is_ok() && sockets.say(10 + number).is_ok()
    };
    for sockets in &mut all {
        for (number, to) in (0..).zip(own) {
            eventually("the server answers", || sockets.ask(number, to).is_ok());
            sockets.connect(10 + number, to).expect("connected");
            assert!(talks(sockets, number, to), "{to}");
        }
    }
    mesh.apply(&authorization("db", "db", "allow", &from("cart")));
    for sockets in &mut all[1..] {
        for (number, to) in (0..).zip(own) {
            within(Duration::from_secs(10), "it is not heard any more", || {
                sockets.ask(number, to).is_err() && sockets.say(10 + number).is_err()
            });
        }
    }
    for (number, to) in (0..).zip(own) {
        within(Duration::from_secs(10), "the account that is allowed talks", || {
            talks(&mut all[0], number, to)
        });
    }
    assert!(mesh.node(1).metrics().count("mesh_policy_ended_total", &[]) >= 8);
}
