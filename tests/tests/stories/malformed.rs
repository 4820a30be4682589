//! Requests that servers read differently, or not at all: what the mesh lets through of them, and what nginx and HAProxy
//! make of the same bytes.
//!
//! Each case is one connection. An endpoint that is told everything behind each of the three reads strictly, and says
//! so where it can't. The mesh may be stricter than both; where it is milder than one of them the table says why.

mod cases;

use std::{collections::BTreeMap, fs};

use cases::{Case, Want, cases};
use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{curl, url, wait_for_ports},
    resources::{Service, vip4},
};
use serde_json::{Value, json};

const PYTHON: &str = "/usr/bin/python3";

/// Reads requests to the letter, answers each, and notes it, or that it can't be read.
const WITNESS: &str = r"
import re, socket, sys, threading, json
log = open(sys.argv[2], 'a', buffering=1)
listener = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
def serve(sock):
    data = b''
    def more():
        nonlocal data
        got = sock.recv(65536)
        if not got:
            raise EOFError
        data += got
    def take(n):
        nonlocal data
        while len(data) < n:
            more()
        out, data = data[:n], data[n:]
        return out
    def line():
        while b'\r\n' not in data:
            more()
        return take(data.index(b'\r\n') + 2)[:-2]
    try:
        while True:
            first = line()
            fields, head = {}, [first]
            while True:
                one = line()
                if not one:
                    break
                head.append(one)
                name, colon, value = one.partition(b':')
                if not colon or not re.fullmatch(rb'[!#$%&\'*+.^_`|~0-9A-Za-z-]+', name) or b'\n' in one or b'\r' in one:
                    raise ValueError(repr(one))
                fields.setdefault(name.lower(), []).append(value.strip())
            if not re.fullmatch(rb'[A-Z]+ [!-~]+ HTTP/1\.[01]', first):
                raise ValueError(repr(first))
            size, coded = fields.get(b'content-length', []), fields.get(b'transfer-encoding', [])
            if len(size) + len(coded) > 1 or [c.lower() for c in coded] not in ([], [b'chunked']) or not all(s.isdigit() for s in size):
                raise ValueError(f'{size} {coded}')
            body = b''
            if coded:
                while True:
                    n = int(line().split(b';')[0], 16)
                    body += take(n)
                    if n == 0:
                        while line():
                            pass
                        break
                    if take(2) != b'\r\n':
                        raise ValueError('chunk')
            elif size:
                body = take(int(size[0]))
            print(json.dumps([h.decode('latin1') for h in head]), file=log)
            sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')
    except (EOFError, ConnectionError):
        pass
    except Exception as e:
        print(json.dumps(['BROKEN', repr(e)]), file=log)
    finally:
        sock.close()
while True:
    sock, _ = listener.accept()
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
";

/// Sends each case to each server on a connection of its own; statuses that came back until it closed or was silent.
const SENDER: &str = r"
import json, re, socket, sys
from concurrent.futures import ThreadPoolExecutor
table = json.load(open(sys.argv[1]))
def one(work):
    server, host, port, case = work
    sock = socket.create_connection((host, port), timeout=5)
    said, closed = b'', False
    try:
        sock.sendall(bytes(case))
        sock.settimeout(1.0)
        while True:
            got = sock.recv(65536)
            if not got:
                closed = True
                break
            said += got
            if re.search(rb'HTTP/1\.[01] [45]', said) is None and said.count(b'\r\n\r\n') >= 1:
                sock.settimeout(0.3)
    except TimeoutError:
        pass
    except OSError:
        closed = True
    sock.close()
    codes = [int(c) for c in re.findall(rb'HTTP/1\.[01] (\d{3})', said)]
    return [server, [c for c in codes if c >= 200], closed]
jobs = [(s, h, p, c) for c in table['cases'] for s, h, p in table['servers']]
with ThreadPoolExecutor(24) as pool:
    json.dump(list(pool.map(one, jobs)), open(sys.argv[2], 'w'))
";

fn witness(pod: &Pod, port: u16) -> Process {
    let (number, log) = (port.to_string(), log_of(pod, port));
    let mut process = pod.start(&format!("witness-{port}"), PYTHON, &["-c", WITNESS, &number, &log]);
    wait_for_ports(pod, &mut process, &[port]);
    process
}

fn log_of(pod: &Pod, port: u16) -> String {
    pod.work().join(format!("witness-{port}.log")).to_string_lossy().into_owned()
}

/// nginx on 8081 before a witness on 9001, HAProxy on 8082 before one on 9002.
fn peers(pod: &Pod) -> Vec<Process> {
    let work = pod.work().display();
    let nginx = format!(
        "daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {work}/t1; proxy_temp_path {work}/t2;\n\
           fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;\n\
           server {{ listen 0.0.0.0:8081; location / {{ proxy_http_version 1.1; proxy_pass http://127.0.0.1:9001; }} }}\n\
         }}\n"
    );
    let haproxy = "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
                   frontend in\n  bind 0.0.0.0:8082\n  default_backend out\n\
                   backend out\n  server s 127.0.0.1:9002\n";
    let [one, two] = [("nginx.conf", nginx.as_str()), ("haproxy.cfg", haproxy)].map(|(name, text)| {
        let path = pod.work().join(name);
        fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    });
    let mut all = vec![witness(pod, 9001), witness(pod, 9002)];
    let errors = pod.work().join("nginx.err").to_string_lossy().into_owned();
    let mut nginx = pod.start("nginx", "/usr/sbin/nginx", &["-c", &one, "-e", &errors]);
    wait_for_ports(pod, &mut nginx, &[8081]);
    let mut haproxy = pod.start("haproxy", "/usr/sbin/haproxy", &["-db", "-f", &two]);
    wait_for_ports(pod, &mut haproxy, &[8082]);
    all.extend([nginx, haproxy]);
    all
}

/// What came back of one case from one server.
#[derive(Clone, Debug)]
struct Came {
    statuses: Vec<u64>,
    closed: bool,
}

impl Came {
    fn refused(&self) -> bool {
        self.statuses.first().map_or(self.closed, |status| *status >= 400)
    }

    fn is(&self, want: Want) -> bool {
        match want {
            Want::Refused(status) => self.statuses == [u64::from(status)] && self.closed,
            Want::Served(count) => self.statuses == vec![200; count],
        }
    }
}

fn sent(client: &Pod, servers: &Value, cases: &[Case]) -> Vec<BTreeMap<String, Came>> {
    let bytes: Vec<&[u8]> = cases.iter().map(|case| &case.bytes[..]).collect();
    let table = json!({"servers": servers, "cases": bytes});
    let [asked, told] =
        ["cases.json", "came.json"].map(|name| client.work().join(name).to_string_lossy().into_owned());
    fs::write(&asked, table.to_string()).unwrap();
    client.run(PYTHON, &["-c", SENDER, &asked, &told]).unwrap();
    let told: Vec<Value> = serde_json::from_str(&fs::read_to_string(&told).unwrap()).unwrap();
    let of = |one: &Value| {
        let statuses = one[1].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        (one[0].as_str().unwrap().to_owned(), Came { statuses, closed: one[2] == true })
    };
    told.chunks(servers.as_array().unwrap().len()).map(|part| part.iter().map(of).collect()).collect()
}

#[test]
fn what_can_be_read_in_two_ways_reaches_nobody() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("shop", 1).http("http", 80).yaml());
    let mut shop = mesh.pod(2, "shop-a").serves("shop", "http", 8080).outside().up();
    let _witness = witness(&shop, 8080);
    shop.enrol();
    let others = mesh.pod(2, "others").outside().up();
    let _peers = peers(&others);
    let client = mesh.pod(1, "client").up();
    eventually("the shop answers", || curl(&client, &[&url(vip4(1), 80, "/")]).status == 200);
    let cases = cases();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    let ip = others.ip().to_string();
    let servers = json!([["mesh", vip4(1).to_string(), 80], ["nginx", ip, 8081], ["haproxy", ip, 8082]]);
    let came = sent(&client, &servers, &cases);
    let mut wrong = Vec::new();
    for (case, came) in cases.iter().zip(&came) {
        let (ours, others) = (&came["mesh"], ["nginx", "haproxy"].map(|name| came[name].refused()));
        let milder = matches!(case.want, Want::Served(_)) && others.contains(&true);
        if !ours.is(case.want) || milder == case.milder.is_empty() {
            let shown: String = case.name.escape_debug().take(80).collect();
            wrong.push(format!("{shown}: {:?}, {came:?} {}", case.want, case.milder));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    // What reached the endpoint is what was served, to the letter.
    let told = fs::read_to_string(log_of(&shop, 8080)).unwrap();
    assert!(!told.contains("BROKEN") && !told.contains("smuggled"), "{told}");
    for hidden in ["h2c", "http2-settings", "x-secret"] {
        assert!(!told.to_ascii_lowercase().contains(hidden), "{hidden}: {told}");
    }
    let served: usize =
        cases.iter().map(|case| if let Want::Served(count) = case.want { count } else { 0 }).sum();
    assert_eq!(told.lines().filter(|line| line.contains("/case")).count(), served);
    let asked = mesh.node(1).metrics();
    assert!(asked.count("mesh_requests_total", &[("reason", "bad_request")]) >= 100);
    assert_eq!(asked.count("mesh_proxy_panics_total", &[]), 0);
    assert_eq!(curl(&client, &[&url(vip4(1), 80, "/")]).status, 200);
}
