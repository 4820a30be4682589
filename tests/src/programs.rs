//! Real programs in pods: nginx, a line server in python, curl.

use std::{
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
               return 200 \"name={name} peer=$remote_addr:$remote_port host=$host uri=$request_uri\\n\";\n\
             }}\n\
             location /files/ {{ alias {work}/files/; }}\n\
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
    /// Requests answered so far, from its access log.
    pub fn hits(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().count()
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

/// A TCP server: says `name=<pod> peer=<address>:<port>` to who connects, then sends back what it gets.
const LINE_SERVER: &str = r"
import socket, socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        peer = self.client_address
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

/// Starts the line server on `port`, both address families; returns when it accepts.
#[track_caller]
pub fn line_server(pod: &Pod, port: u16) -> Process {
    let args = ["-c", LINE_SERVER, pod.name(), &port.to_string()];
    let mut process = pod.start(&format!("lines-{port}"), "/usr/bin/python3", &args);
    wait_for_ports(pod, &mut process, &[port]);
    process
}

#[track_caller]
fn wait_for_ports(pod: &Pod, process: &mut Process, ports: &[u16]) {
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
    const FORMAT: &str = "\n%{http_code} %{remote_ip} %{local_ip} %{time_total}";
    let mut command = pod.command("/usr/bin/curl");
    command.args(["-g", "-s", "-S", "--max-time", "5", "-w", FORMAT]).args(args);
    command.stdin(std::process::Stdio::null());
    let output = pod.netns().with(|| command.output()).expect("run curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, line) = text.rsplit_once('\n').unwrap_or(("", &text));
    let words: Vec<_> = line.split(' ').collect();
    let word = |index: usize| words.get(index).copied().unwrap_or_default();
    Reply {
        status: word(0).parse().unwrap_or(0),
        body: body.to_owned(),
        remote: word(1).to_owned(),
        local: word(2).to_owned(),
        took: Duration::from_secs_f64(word(3).parse().unwrap_or(0.0)),
        exit: output.status.code().unwrap_or(-1),
        error: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    }
}

/// `http://address:port/path`, brackets for IPv6.
pub fn url(address: impl Into<IpAddr>, port: u16, path: &str) -> String {
    format!("http://{}{path}", SocketAddr::new(address.into(), port))
}
