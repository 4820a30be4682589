//! Real programs in pods: nginx, a line server in python, curl.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{eventually, pod::Pod, process::Process};

/// nginx in a pod, answering every request with who it is and whom it sees.
pub struct Nginx {
    process: Process,
    log: PathBuf,
}

/// Starts nginx on `ports` (IPv4 and IPv6); returns when it accepts. A request is answered with
/// `name=<pod> peer=<address>:<port> host=<host> uri=<uri>`.
#[track_caller]
pub fn nginx(pod: &Pod, ports: &[u16]) -> Nginx {
    let work = pod.work();
    let log = work.join("access.log");
    let listen: Vec<String> = ports
        .iter()
        .map(|port| format!("listen 0.0.0.0:{port} backlog=4096; listen [::]:{port} backlog=4096;"))
        .collect();
    let listen = listen.join("\n");
    let config = format!(
        "daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/error.log;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n\
           log_format line '$remote_addr:$remote_port $server_addr:$server_port $request_uri $status';\n\
           access_log {log} line; keepalive_requests 100000000; default_type text/plain;\n\
           client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;\n\
           uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;\n\
           server {{ {listen}\n\
             location / {{\n\
               return 200 \"name={name} peer=$remote_addr:$remote_port host=$host uri=$request_uri echo=$http_x_echo\\n\";\n\
             }}\n\
             location /maybe/ {{\n\
               if (-f {work}/busy) {{ return 503; }}\n\
               return 200 \"name={name}\\n\";\n\
             }}\n\
             location /files/ {{ alias {work}/files/; }}\n\
             location /drip/ {{ limit_rate 2000; alias {work}/files/; }}\n\
           }}\n\
         }}\n",
        work = work.display(),
        log = log.display(),
        name = pod.name(),
    );
    let path = work.join("nginx.conf");
    fs::write(&path, config).expect("write nginx.conf");
    fs::create_dir_all(work.join("files")).expect("make files/");
    let error_log = work.join("error.log");
    let args = ["-c", &path.to_string_lossy(), "-e", &error_log.to_string_lossy()];
    let mut process = pod.start("nginx", "/usr/sbin/nginx", &args);
    wait_for_ports(pod, &mut process, ports);
    Nginx { process, log }
}

impl Nginx {
    /// Requests answered so far whose path contains `word`, from its access log. nginx writes the line after
    /// the answer: wait for the number.
    pub fn hits(&self, word: &str) -> u64 {
        self.access_log().lines().filter(|line| line.contains(word)).count() as u64
    }

    /// Its access log.
    pub fn access_log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its master process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// A TCP server: logs who connects, says `name=<pod> peer=<address>:<port>` to who connects, then sends back what it gets.
const LINE_SERVER: &str = r"
import socket, socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        peer = self.client_address
        print(peer[0], peer[1], flush=True)
        self.request.sendall(f'name={sys.argv[1]} peer={peer[0]}:{peer[1]}\n'.encode())
        while True:
            data = self.request.recv(65536)
            if not data:
                return
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
Server(('::', int(sys.argv[2])), Handler).serve_forever()
";

/// An HTTP server that reads whole bodies, with length or chunked, and answers with length and SHA-256.
const BODY_SERVER: &str = r"
import hashlib, http.server, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def chunks(self):
        if self.headers.get('Transfer-Encoding') != 'chunked':
            yield self.rfile.read(int(self.headers.get('Content-Length', 0)))
            return
        while length := int(self.rfile.readline(), 16):
            yield self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
    def do_POST(self):
        body = b''.join(self.chunks())
        answer = f'length={len(body)} sha256={hashlib.sha256(body).hexdigest()}\n'.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(('::', int(sys.argv[1])), Handler).serve_forever()
";

/// Starts the body server on `port`; returns when it accepts.
#[track_caller]
pub fn body_server(pod: &Pod, port: u16) -> Process {
    let args = ["-c", BODY_SERVER, &port.to_string()];
    let mut process = pod.start(&format!("bodies-{port}"), "/usr/bin/python3", &args);
    wait_for_ports(pod, &mut process, &[port]);
    process
}

/// Connects, reads the line server's line, closes; as often as asked. Prints a line a connection: the
/// server's name and the microseconds it took, or `error` and why.
const LINE_CLIENT: &str = r"
import socket, sys, time
for _ in range(int(sys.argv[3])):
    begin = time.perf_counter()
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
            name = s.makefile().readline().split()[0].removeprefix('name=')
            print(name, int((time.perf_counter() - begin) * 1e6))
    except OSError as error:
        print('error', type(error).__name__)
";

/// What the connections of [`connect_lines`] came to.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Connections answered, by the name of who did.
    pub servers: BTreeMap<String, u64>,
    /// Others, by cause.
    pub errors: BTreeMap<String, u64>,
    /// Connect and first line, microseconds, sorted, by the name of who answered.
    pub took_us: BTreeMap<String, Vec<u64>>,
}

/// Opens `count` connections from `pod` to a line server, one after the other.
#[track_caller]
pub fn connect_lines(pod: &Pod, to: SocketAddr, count: u32) -> Lines {
    let (address, port, count) = (to.ip().to_string(), to.port().to_string(), count.to_string());
    let output = pod
        .run("/usr/bin/python3", &["-c", LINE_CLIENT, &address, &port, &count])
        .unwrap_or_else(|error| panic!("{error:#}"));
    let mut lines = Lines::default();
    for line in output.lines() {
        match line.split_once(' ') {
            Some(("error", cause)) => *lines.errors.entry(cause.to_owned()).or_default() += 1,
            Some((name, took)) => {
                *lines.servers.entry(name.to_owned()).or_default() += 1;
                lines.took_us.entry(name.to_owned()).or_default().push(took.parse().unwrap_or(0));
            }
            None => panic!("the line client said {line:?}"),
        }
    }
    lines.took_us.values_mut().for_each(|took| took.sort_unstable());
    lines
}

/// Opens connections to a line server, one after the other, and keeps them. Prints `held` and the server's
/// name, or `error` and why, and at the end `done`.
const HOLDER: &str = r"
import socket, sys, time
held = []
for _ in range(int(sys.argv[3])):
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
        held.append(s)
        print('held', s.makefile().readline().split()[0].removeprefix('name='), flush=True)
    except OSError as error:
        print('error', type(error).__name__, flush=True)
print('done', flush=True)
time.sleep(3600)
";

/// Connections that are kept until this is dropped.
pub struct Held {
    /// What opening them came to.
    pub lines: Lines,
    _process: Process,
}

/// Opens `count` connections from `pod` to a line server and keeps them; `name` is not used twice in a pod.
#[track_caller]
pub fn hold(pod: &Pod, name: &str, to: SocketAddr, count: u32) -> Held {
    let (address, port, count) = (to.ip().to_string(), to.port().to_string(), count.to_string());
    let process = pod.start(name, "/usr/bin/python3", &["-c", HOLDER, &address, &port, &count]);
    eventually(&format!("{name} has opened {count} connections"), || process.log().ends_with("done\n"));
    let mut lines = Lines::default();
    for line in process.log().lines() {
        match line.split_once(' ') {
            Some(("held", name)) => *lines.servers.entry(name.to_owned()).or_default() += 1,
            Some(("error", cause)) => *lines.errors.entry(cause.to_owned()).or_default() += 1,
            _ => {}
        }
    }
    Held { lines, _process: process }
}

/// Connections to line servers over which a word goes to and fro all the time. Prints, with the connection's label:
/// `open`, `beat` for each word that came back, `ended` and why.
const TALKER: &str = r"
import socket, sys, threading, time
def talk(label, address, port):
    try:
        with socket.create_connection((address, int(port)), 5) as s:
            file = s.makefile()
            file.readline()
            print(label, 'open', flush=True)
            while True:
                s.sendall(b'word\n')
                if file.readline() != 'word\n':
                    raise OSError('no word came back')
                print(label, 'beat', flush=True)
                time.sleep(0.05)
    except OSError as error:
        print(label, 'ended', type(error).__name__, flush=True)
threads = [threading.Thread(target=talk, args=sys.argv[i:i + 3]) for i in range(1, len(sys.argv), 3)]
[t.start() for t in threads]
[t.join() for t in threads]
";

/// Connections under way: see [`talk`].
pub struct Talk(Process);

impl Talk {
    /// Words that came back on the connection to this address, and whether it has ended.
    pub fn now(&self, to: SocketAddr) -> (usize, bool) {
        let (log, label) = (self.0.log(), to.to_string());
        let of = |what: &str| {
            let lines = log.lines().filter_map(|line| line.strip_prefix(&label)?.strip_prefix(' '));
            lines.filter(|line| line.starts_with(what)).count()
        };
        (of("beat"), of("ended") > 0)
    }

    /// Waits until words have come back on the connections to all of these since now, and none of them has ended.
    #[track_caller]
    pub fn goes_on(&self, all: &[SocketAddr]) {
        for to in all {
            let (before, ended) = self.now(*to);
            assert!(!ended, "the connection to {to} has ended:\n{}", self.0.log());
            eventually(&format!("words come back from {to}"), || self.now(*to).0 > before + 2);
        }
    }
}

/// Opens a connection to the line servers at each of these, over which a word goes to and fro all the time; returns
/// when all are open. `name` is not used twice in a pod.
#[track_caller]
pub fn talk(pod: &Pod, name: &str, all: &[SocketAddr]) -> Talk {
    let each = |to: &SocketAddr| [to.to_string(), to.ip().to_string(), to.port().to_string()];
    let mut args = vec!["-c".to_owned(), TALKER.to_owned()];
    args.extend(all.iter().flat_map(each));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let talk = Talk(pod.start(name, "/usr/bin/python3", &args));
    eventually(&format!("{name} talks to all of {all:?}"), || all.iter().all(|to| talk.now(*to).0 > 0));
    talk
}

/// Starts the line server on `port`, both address families; returns when it accepts.
#[track_caller]
pub fn line_server(pod: &Pod, port: u16) -> Process {
    let args = ["-c", LINE_SERVER, pod.name(), &port.to_string()];
    let mut process = pod.start(&format!("lines-{port}"), "/usr/bin/python3", &args);
    wait_for_ports(pod, &mut process, &[port]);
    process
}

/// Waits until a program in a pod listens on these ports.
#[track_caller]
pub fn wait_for_ports(pod: &Pod, process: &mut Process, ports: &[u16]) {
    for &port in ports {
        let address = SocketAddr::from((pod.ip(), port));
        eventually(&format!("{} listens on {address}", pod.name()), || {
            if let Some(status) = process.ended() {
                panic!("the program in {} ended ({status}):\n{}", pod.name(), process.log());
            }
            // Seen in the namespace's own table: a connection would be counted.
            listens(pod, port)
        });
    }
}

fn listens(pod: &Pod, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    pod.netns().with(|| {
        ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|table| {
            let text = fs::read_to_string(table).unwrap_or_default();
            // State 0A is LISTEN.
            text.lines().any(|line| {
                let mut words = line.split_whitespace().skip(1);
                words.next().is_some_and(|local| format!("{local} ").ends_with(&wanted))
                    && words.nth(1) == Some("0A")
            })
        })
    })
}

/// What curl saw.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// HTTP status; 0: none came.
    pub status: u16,
    /// The body.
    pub body: String,
    /// What `getpeername` showed.
    pub remote: String,
    /// What `getsockname` showed.
    pub local: String,
    /// From start to end.
    pub took: Duration,
    /// curl's exit code: 7 is "could not connect".
    pub exit: i32,
    /// curl's own words.
    pub error: String,
}

impl Reply {
    /// The value after `key=` in the body of our servers; empty where there is none.
    pub fn field(&self, key: &str) -> &str {
        let mut words = self.body.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
    }

    /// The pod that answered.
    pub fn name(&self) -> &str {
        self.field("name")
    }
}

/// One request of curl in `pod`.
#[track_caller]
pub fn curl(pod: &Pod, args: &[&str]) -> Reply {
    let mut replies = curls(pod, args);
    assert_eq!(replies.len(), 1, "one URL, one reply: {args:?}");
    replies.remove(0)
}

/// `count` requests of one curl, one after the other; the connection is kept where the server lets it.
#[track_caller]
pub fn curl_many(pod: &Pod, url: &str, count: usize) -> Vec<Reply> {
    curls(pod, &vec![url; count])
}

#[track_caller]
fn curls(pod: &Pod, args: &[&str]) -> Vec<Reply> {
    const FORMAT: &str = "\n@@ %{http_code} %{remote_ip} %{local_ip} %{time_total} %{exitcode}\n";
    let mut command = pod.command("/usr/bin/curl");
    command.args(["-g", "-s", "-S", "--max-time", "5", "-w", FORMAT]).args(args);
    command.stdin(std::process::Stdio::null());
    let output = pod.netns().with(|| command.output()).expect("run curl");
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut replies, mut body) = (Vec::new(), String::new());
    for line in text.lines() {
        let Some(summary) = line.strip_prefix("@@ ") else {
            body.push_str(line);
            body.push('\n');
            continue;
        };
        let words: Vec<_> = summary.split(' ').collect();
        let word = |index: usize| words.get(index).copied().unwrap_or_default();
        replies.push(Reply {
            status: word(0).parse().unwrap_or(0),
            body: std::mem::take(&mut body),
            remote: word(1).to_owned(),
            local: word(2).to_owned(),
            took: Duration::from_secs_f64(word(3).parse().unwrap_or(0.0)),
            exit: word(4).parse().unwrap_or(-1),
            error: error.clone(),
        });
    }
    assert!(!replies.is_empty(), "curl did not run: {error}");
    replies
}

/// `http://address:port/path`, brackets for IPv6.
pub fn url(address: impl Into<IpAddr>, port: u16, path: &str) -> String {
    format!("http://{}{path}", SocketAddr::new(address.into(), port))
}
