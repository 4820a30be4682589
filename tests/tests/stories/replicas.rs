//! Several control planes on one etcd: each may be killed, and nothing that was acknowledged is lost, nobody is
//! deregistered, and traffic does not notice.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Node, Pod, agent_socket, eventually,
    eventually::until,
    load::Load,
    programs::Nginx,
    replicas::{COUNT, Replicas, control_list},
    resources::{Service, at, vip4},
    within,
};
use serde_json::json;

use crate::words::{settled, web};

/// Two nodes; heartbeats each second, leases of three.
fn mesh() -> Mesh {
    Mesh::builder().nodes(2).agent_args(&["--control", &control_list()]).lay()
}

const SHORT: [&str; 4] = ["--heartbeat", "1s", "--lease", "3s"];

/// Four servers behind one address on both nodes, and who asks them.
fn shop(mesh: &Mesh, replicas: &Replicas<'_>) -> (Vec<(Pod, Nginx)>, Pod) {
    replicas.apply(&Service::vip("shop", 1).tcp("tcp", 80).yaml());
    let servers = [(1, "a"), (1, "b"), (2, "c"), (2, "d")];
    let servers = servers.map(|(node, name)| web(mesh, node, name, "shop", "tcp", 1)).into();
    let client = mesh.pod(1, "client").up();
    settled(&client, at(vip4(1), 80), &["a", "b", "c", "d"]);
    (servers, client)
}

/// One client: writes one object after another, and goes to another replica where one fails; what was acknowledged, at
/// which revision, in order.
fn write(
    replicas: &Replicas<'_>,
    writer: usize,
    ended: &AtomicBool,
    done: &AtomicUsize,
) -> Vec<(String, u64)> {
    let (mut acknowledged, mut replica) = (Vec::new(), writer % COUNT);
    for number in 0.. {
        let name = format!("w{writer}-{number}");
        let body = json!({
            "apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": { "namespace": "written", "name": name },
            "spec": { "ports": [{ "name": "tcp", "port": 80 }] },
        });
        loop {
            if ended.load(Ordering::Relaxed) {
                return acknowledged;
            }
            let answer = replicas.put(replica, &format!("/v1/services/written/{name}"), &body);
            match (answer.status, answer.json()["metadata"]["revision"].as_u64()) {
                (200 | 201, Some(revision)) => {
                    acknowledged.push((name, revision));
                    done.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // Not there, or no quorum for a moment.
                (0 | 503, _) => replica = (replica + 1) % COUNT,
                _ => panic!("{answer:?}"),
            }
        }
    }
    acknowledged
}

/// A change is in force on every node within `time`.
fn converges(mesh: &Mesh, replicas: &Replicas<'_>, number: u8, time: Duration) {
    let name = format!("also-{number}");
    replicas.apply(&Service::vip(&name, number).tcp("tcp", 80).yaml());
    within(time, &format!("{name} is known on every node"), || {
        let snapshot =
            |node: &Node| agent_socket::request_file(&node.socket(), &json!({"v": 1, "op": "snapshot"}));
        mesh.nodes().all(|node| snapshot(node).is_ok_and(|text| text.to_string().contains(&name)))
    });
}

#[test]
fn replicas_and_members_of_etcd_are_killed_and_no_acknowledged_write_is_lost() {
    let mesh = mesh();
    let replicas = Replicas::up(&mesh, &SHORT);
    let (_servers, client) = shop(&mesh, &replicas);
    let load = Load::to(at(vip4(1), 80)).rate(200).start(&client);
    let (ended, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let more = |count: usize| {
        let from = done.load(Ordering::Relaxed);
        within(Duration::from_secs(30), "writes go on", || done.load(Ordering::Relaxed) >= from + count);
    };
    let histories: Vec<Vec<(String, u64)>> = std::thread::scope(|scope| {
        let (replicas, ended, done) = (&replicas, &ended, &done);
        let writers: Vec<_> =
            (0..COUNT).map(|writer| scope.spawn(move || write(replicas, writer, ended, done))).collect();
        more(10);
        replicas.kill_etcd(1);
        more(10);
        replicas.start_etcd(1);
        more(5);
        eventually("one leads", || replicas.leader(0).is_some());
        let leader = replicas.leader(0).unwrap_or(0);
        for (turn, number) in (0..COUNT).map(|i| (leader + i) % COUNT).enumerate() {
            replicas.kill(number);
            more(5);
            converges(&mesh, replicas, 20 + turn as u8, Duration::from_secs(3));
            let other = (number + 1) % COUNT;
            within(Duration::from_secs(12), "another leads", || {
                replicas.leader(other).is_some_and(|leader| leader != number)
            });
            replicas.start(number);
            replicas.wait(number);
            more(5);
        }
        ended.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
    });
    // Every node is with a replica, and hears of a change at once.
    converges(&mesh, &replicas, 30, Duration::from_secs(2));
    let all: BTreeMap<&String, u64> =
        histories.iter().flatten().map(|(name, revision)| (name, *revision)).collect();
    for history in &histories {
        assert!(history.windows(2).all(|pair| pair[0].1 < pair[1].1), "reordered: {history:?}");
    }
    for number in 0..COUNT {
        let lost = || {
            let answer = replicas.get(number, "/v1/services/written");
            let list = answer.json();
            let of = |item: &serde_json::Value| {
                Some((item["metadata"]["name"].as_str()?.to_owned(), item["metadata"]["revision"].as_u64()?))
            };
            let held: BTreeMap<String, u64> =
                list["items"].as_array().into_iter().flatten().filter_map(of).collect();
            let lost = all.iter().find(|(name, revision)| held.get(**name) != Some(revision));
            lost.map(|lost| format!("replica {number}: {lost:?} of {}, {}", held.len(), answer.status))
        };
        let what = "every replica has every acknowledged write, by revision";
        until(Duration::from_secs(5), what, lost, Option::is_none);
    }
    settled(&client, at(vip4(1), 80), &["a", "b", "c", "d"]);
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
}

#[test]
fn without_control_planes_for_ten_lease_times_and_without_quorum_nobody_is_deregistered() {
    let mesh = mesh();
    let replicas = Replicas::up(&mesh, &SHORT);
    let (_servers, client) = shop(&mesh, &replicas);
    let workloads = |asked: usize| {
        let list = replicas.get(asked, "/v1/workloads").json();
        list["items"].as_array().map_or(0, Vec::len)
    };
    let before = workloads(0);
    assert!(before >= 5, "{before}");
    let load = Load::to(at(vip4(1), 80)).rate(100).start(&client);
    (0..COUNT).for_each(|number| replicas.kill(number));
    // Ten lease times, by the load's own clock.
    (0..2).for_each(|_| drop(load.go_on(1500)));
    (0..COUNT).for_each(|number| replicas.start(number));
    (0..COUNT).for_each(|number| replicas.wait(number));
    load.go_on(700);
    for number in 0..COUNT {
        assert_eq!(workloads(number), before, "replica {number}:\n{}", replicas.control_log(number));
    }
    converges(&mesh, &replicas, 21, Duration::from_secs(5));

    // Two of three members: no write, everything else.
    replicas.kill_etcd(0);
    replicas.kill_etcd(1);
    let put = || {
        let spec = json!({ "ports": [{ "name": "tcp", "port": 80 }] });
        let metadata = json!({ "namespace": "written", "name": "late" });
        let body =
            json!({ "apiVersion": "nodemesh.io/v1", "kind": "Service", "metadata": metadata, "spec": spec });
        replicas.put(2, "/v1/services/written/late", &body)
    };
    let begun = Instant::now();
    let refused = put();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("cannot be written now"), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    eventually("it says so", || {
        let ready = replicas.get(2, "/readyz");
        ready.status == 200 && ready.body.contains("takes no writes")
    });
    assert_eq!(workloads(2), before, "read from memory");
    load.go_on(500);
    replicas.start_etcd(0);
    replicas.start_etcd(1);
    within(Duration::from_secs(20), "writes are taken again", || put().status < 300);
    load.go_on(300);
    assert_eq!(workloads(2), before);
    let report = load.stop();
    assert_eq!(report.failed(), 0, "{report:?}");
}
