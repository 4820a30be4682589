//! What follows from how soon, and how well, endpoints answer: second requests, balancing by answers, ejection by comparison.

use std::{collections::BTreeMap, fs};

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{curl, url, wait_for_ports},
    resources::{Service, at, traffic, vip4},
};

use crate::words::settled;

const TO: [(&str, &str); 1] = [("destination", "default/shop:80")];

/// An HTTP server that says its name, as soon and as well as the file `mood` says: `<milliseconds> <every nth> <status>`.
const FICKLE: &str = r"
import http.server, itertools, socket, sys, time
count = itertools.count(1)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_):
        pass
    def do_GET(self):
        wait, nth, status = open('mood').read().split()
        struck = next(count) % int(nth) == 0
        if struck:
            time.sleep(int(wait) / 1000)
        body = f'name={sys.argv[1]}\n'.encode()
        self.send_response(int(status) if struck else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 1024
Server(('::', 8080), Handler).serve_forever()
";

/// At once, and well.
const GOOD: &str = "0 1 200";

/// Asks so often, on so many connections at once; prints a line an answer: status, milliseconds, who.
const ASK: &str = r"
import http.client, sys, threading, time
lines = []
def ask(count):
    c = http.client.HTTPConnection(sys.argv[1], 80, timeout=20)
    for _ in range(count):
        begun = time.perf_counter()
        c.request('GET', '/')
        answer = c.getresponse()
        name = answer.read().decode().strip()
        lines.append('%d %d %s' % (answer.status, (time.perf_counter() - begun) * 1000, name or '-'))
all = [threading.Thread(target=ask, args=(int(sys.argv[3]),)) for _ in range(int(sys.argv[2]))]
[t.start() for t in all]
[t.join() for t in all]
print(*lines, sep='\n')
";

/// One answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    ms: u64,
    who: String,
}

fn ask(client: &Pod, connections: u32, each: u32) -> Vec<Answer> {
    let [to, connections, each] = [vip4(1).to_string(), connections.to_string(), each.to_string()];
    let said = client.run("/usr/bin/python3", &["-c", ASK, &to, &connections, &each]).expect("answers");
    let answer = |line: &str| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("{line}"));
        let (status, ms) = (word().parse().unwrap(), word().parse().unwrap());
        Answer { status, ms, who: word().trim_start_matches("name=").to_owned() }
    };
    said.lines().map(answer).collect()
}

fn by_name(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut seen = BTreeMap::new();
    for answer in answers {
        *seen.entry(answer.who.as_str()).or_default() += 1;
    }
    seen
}

struct Shop {
    mesh: Mesh,
    client: Pod,
    servers: Vec<(Pod, Process)>,
}

impl Shop {
    /// Service `shop` with servers of these names and moods, half of them on the client's node.
    fn new(servers: &[(&str, &str)]) -> Self {
        let mesh = Mesh::builder().nodes(2).mtls().up();
        mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
        let start = |(number, (name, _)): (usize, &(&str, &str))| {
            let node = number as u8 % 2 + 1;
            let mut pod = mesh.pod(node, name).serves("shop", "http", 8080).outside().up();
            fs::write(pod.work().join("mood"), GOOD).unwrap();
            let mut process = pod.start("fickle", "/usr/bin/python3", &["-c", FICKLE, name]);
            wait_for_ports(&pod, &mut process, &[8080]);
            pod.enrol();
            (pod, process)
        };
        let all: Vec<(Pod, Process)> = servers.iter().enumerate().map(start).collect();
        let client = mesh.pod(1, "client").up();
        let names: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();
        settled(&client, at(vip4(1), 80), &names);
        for ((pod, _), (_, mood)) in all.iter().zip(servers) {
            fs::write(pod.work().join("mood"), mood).unwrap();
        }
        Self { mesh, client, servers: all }
    }

    /// In force when what only such a policy shows is shown.
    fn asks(&self, policy: &[&str]) {
        self.mesh.apply(&traffic("shop", policy));
        eventually("the policy is in force", || {
            curl(&self.client, &[&url(vip4(1), 80, "/")]);
            self.mesh.node(1).metrics().find("mesh_requests_in_flight", &TO).next().is_some()
        });
    }

    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.mesh.node(1).metrics().count(name, labels)
    }
}

fn slow(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.ms >= 400).count()
}

#[test]
fn second_requests_cut_the_tail_and_stay_a_share() {
    // Each tenth request takes half a second.
    let shop = Shop::new(&[("a", "500 10 200"), ("b", "500 10 200")]);
    let before = ask(&shop.client, 4, 50);
    assert!(slow(&before) >= 10, "each tenth takes long: {before:?}");

    shop.asks(&["hedge: {after: 60ms, maxPercent: 100}"]);
    let hedged = ask(&shop.client, 4, 50);
    assert!(hedged.iter().all(|answer| answer.status == 200), "{hedged:?}");
    // Both are slow for one in a hundred.
    assert!(slow(&hedged) <= 8 && slow(&hedged) * 2 < slow(&before), "{}: {hedged:?}", slow(&hedged));
    let won = shop.count("mesh_proxy_hedges_total", &[("outcome", "won")]);
    assert!(won >= 8, "{won}");
    eventually("nothing is left", || shop.count("mesh_requests_in_flight", &TO) == 0);

    // Both hang: no more than one of a few in flight is doubled.
    for (pod, _) in &shop.servers {
        fs::write(pod.work().join("mood"), "400 1 200").unwrap();
    }
    shop.mesh
        .apply(&traffic("shop", &["hedge: {after: 60ms, maxPercent: 10}", "limits: {maxRequests: 1000}"]));
    let sent =
        || ["won", "lost"].map(|outcome| shop.count("mesh_proxy_hedges_total", &[("outcome", outcome)]));
    let before: u64 = sent().iter().sum();
    ask(&shop.client, 8, 3);
    let doubled = sent().iter().sum::<u64>() - before;
    assert!(doubled <= 8, "{doubled} of 24: at most one at a time");
}

#[test]
fn a_slow_endpoint_gets_few_requests_by_peak_ewma_and_by_least_requests() {
    let shop = Shop::new(&[("quick", "3 1 200"), ("slow", "90 1 200")]);
    let share = |policy: &str| {
        shop.asks(&[policy, "limits: {maxRequests: 1000}"]);
        let answers = ask(&shop.client, 6, 60);
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        let seen = by_name(&answers);
        println!("{policy}: {seen:?}");
        seen.get("slow").copied().unwrap_or(0) * 100 / answers.len()
    };
    let turns = share("balancing: roundRobin");
    assert!((45..=55).contains(&turns), "in turns: {turns} %");
    let ewma = share("balancing: peakEwma");
    assert!(ewma <= 15, "{ewma} %");
    let least = share("balancing: leastRequests");
    assert!(least <= 30, "{least} %");
}

#[test]
fn an_endpoint_that_succeeds_less_often_than_the_others_is_left_out() {
    let shop = Shop::new(&[("a", GOOD), ("b", GOOD), ("c", GOOD), ("d", GOOD), ("e", "0 2 500")]);
    let rate = "outlierEjection: {successRate: {interval: 1s, minimumHosts: 5, requestVolume: 20, \
                stdevFactor: 1500}, baseEjectionTime: 30s}";
    shop.asks(&[rate]);
    eventually("it is left out", || {
        ask(&shop.client, 4, 60);
        shop.count("mesh_ejected_endpoints", &TO) == 1
    });
    let after = ask(&shop.client, 4, 50);
    assert!(after.iter().all(|answer| answer.status == 200), "{after:?}");
    assert_eq!(by_name(&after).keys().copied().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}
