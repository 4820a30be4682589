//! UDP in pods: a server that says who it is, sockets that a story holds, dnsmasq and dig, a QUIC pair.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{eventually, eventually::until, pod::Pod, process::Process};

const PYTHON: &str = "/usr/bin/python3";

/// Answers each datagram with `name=<pod> peer=<address>:<port>`, from one socket of both families.
const SERVER: &str = r"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(('::', int(sys.argv[2])))
while True:
    data, peer = s.recvfrom(65536)
    host = peer[0].removeprefix('::ffff:')
    s.sendto(f'name={sys.argv[1]} peer={host}:{peer[1]}'.encode(), peer)
";

/// Starts the server on `port`; returns when it hears.
#[track_caller]
pub fn udp_server(pod: &Pod, port: u16) -> Process {
    let args = ["-c", SERVER, pod.name(), &port.to_string()];
    let mut process = pod.start(&format!("datagrams-{port}"), PYTHON, &args);
    wait_for_port(pod, &mut process, port);
    process
}

#[track_caller]
pub(crate) fn wait_for_port(pod: &Pod, process: &mut Process, port: u16) {
    let wanted = format!(":{port:04X}");
    eventually(&format!("{} hears on UDP port {port}", pod.name()), || {
        if let Some(status) = process.ended() {
            panic!("the program in {} ended ({status}):\n{}", pod.name(), process.log());
        }
        pod.netns().with(|| {
            ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"].iter().any(|table| {
                let text = fs::read_to_string(table).unwrap_or_default();
                text.lines()
                    .any(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)))
            })
        })
    });
}

/// Holds sockets by number, and does with them what its input says: a line in, a line out.
const SOCKETS: &str = r"
import errno, socket, sys, time
held = {}
def at(number, address):
    if number not in held:
        family = socket.AF_INET6 if ':' in address else socket.AF_INET
        held[number] = socket.socket(family, socket.SOCK_DGRAM)
        held[number].settimeout(2)
    return held[number]
def heard(s):
    data, peer = s.recvfrom(65536)
    words = dict(word.split('=') for word in data.decode().split())
    return ('heard', words['name'], words['peer'], peer[0], peer[1])
for line in sys.stdin:
    operation, number, address, port = line.split()
    try:
        if operation == 'ask':
            s = at(number, address)
            s.sendto(b'?', (address, int(port)))
            said = heard(s)
        elif operation == 'connect':
            s = at(number, address)
            s.connect((address, int(port)))
            said = ('connected', *s.getpeername()[:2])
        elif operation == 'say':
            held[number].send(b'?')
            said = heard(held[number])
        elif operation == 'close':
            held.pop(number).close()
            said = ('closed',)
        elif operation == 'rest':
            time.sleep(float(address))
            said = ('rested',)
    except TimeoutError:
        said = ('error', 'timeout')
    except OSError as error:
        said = ('error', errno.errorcode[error.errno])
    print(*said, flush=True)
";

/// Datagram sockets in a pod, under the story's control.
pub struct Sockets {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The pod that answered.
    pub name: String,
    /// Whom it heard.
    pub peer: String,
    /// Where the answer came from, as `recvfrom()` said.
    pub from: SocketAddr,
}

impl Sockets {
    /// None yet.
    #[track_caller]
    pub fn of(pod: &Pod) -> Self {
        let mut command = pod.command(PYTHON);
        command.args(["-c", SOCKETS]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pod.netns().with(|| command.spawn()).expect("start the sockets' program");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, input, output }
    }

    #[track_caller]
    fn tell(
        &mut self,
        operation: &str,
        socket: u32,
        address: &str,
        port: u16,
    ) -> Result<Vec<String>, String> {
        writeln!(self.input, "{operation} {socket} {address} {port}").expect("tell the sockets' program");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("hear the sockets' program");
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match words.split_first() {
            Some((first, rest)) if first == "error" => Err(rest.join(" ")),
            Some((_, rest)) => Ok(rest.to_vec()),
            None => panic!("the sockets' program ended"),
        }
    }

    #[track_caller]
    fn heard(words: &[String]) -> Heard {
        let [name, peer, address, port] = words else { panic!("the sockets' program said {words:?}") };
        let from = end(address, port);
        Heard { name: name.clone(), peer: peer.clone(), from }
    }

    /// Sends from `socket` to an address, made at first use, and waits for what comes; or the error's name.
    #[track_caller]
    pub fn ask(&mut self, socket: u32, to: SocketAddr) -> Result<Heard, String> {
        self.tell("ask", socket, &to.ip().to_string(), to.port()).map(|words| Self::heard(&words))
    }

    /// Connects `socket`; what `getpeername()` says.
    #[track_caller]
    pub fn connect(&mut self, socket: u32, to: SocketAddr) -> Result<SocketAddr, String> {
        let words = self.tell("connect", socket, &to.ip().to_string(), to.port())?;
        let [address, port] = &words[..] else { panic!("the sockets' program said {words:?}") };
        Ok(end(address, port))
    }

    /// Sends from a connected socket and waits for what comes.
    #[track_caller]
    pub fn say(&mut self, socket: u32) -> Result<Heard, String> {
        self.tell("say", socket, "-", 0).map(|words| Self::heard(&words))
    }

    /// Closes `socket`.
    #[track_caller]
    pub fn close(&mut self, socket: u32) {
        self.tell("close", socket, "-", 0).expect("an open socket");
    }

    /// Lets all sockets be silent for this time.
    #[track_caller]
    pub fn rest(&mut self, time: Duration) {
        self.tell("rest", 0, &time.as_secs_f64().to_string(), 0).expect("rests");
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn end(address: &str, port: &str) -> SocketAddr {
    let address: IpAddr = address.parse().unwrap_or_else(|_| panic!("{address} is not an address"));
    SocketAddr::new(address, port.parse().unwrap_or_else(|_| panic!("{port} is not a port")))
}

/// Starts dnsmasq on `port`, UDP and TCP: `who.example` is the TXT record `name=<pod>`.
#[track_caller]
pub fn dnsmasq(pod: &Pod, port: u16) -> Process {
    let (port_arg, record) =
        (format!("--port={port}"), format!("--txt-record=who.example,name={}", pod.name()));
    start_dnsmasq(pod, "dnsmasq", port, &[&port_arg, &record])
}

/// Starts dnsmasq under `name` with nothing of its machine's configuration, and waits until it hears on `port`.
#[track_caller]
pub(crate) fn start_dnsmasq(pod: &Pod, name: &str, port: u16, args: &[&str]) -> Process {
    let common = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--group=",
        "--pid-file",
        "--log-facility=-",
    ];
    let mut process = pod.start(name, "dnsmasq", &[&common[..], args].concat());
    wait_for_port(pod, &mut process, port);
    process
}

/// Asks a DNS server who it is; dig refuses an answer that comes from elsewhere than it asked. `more`: dig's
/// own options.
pub fn dig(pod: &Pod, server: SocketAddr, more: &[&str]) -> Result<String> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let args = [&at, "-p", &port, "+short", "+tries=1", "+time=2", "-t", "TXT", "who.example"];
    let said = pod.run("dig", &[&args[..], more].concat())?;
    Ok(said.trim().trim_matches('"').trim_start_matches("name=").to_owned())
}

/// Starts ngtcp2's server (HTTP/3) on `port`; `/who` says `name=<pod>`, `/big` is [`BIG`] bytes.
#[track_caller]
pub fn quic_server(pod: &Pod, port: u16) -> Process {
    let root = pod.work().join("htdocs");
    fs::create_dir_all(&root).expect("make htdocs/");
    fs::write(root.join("who"), format!("name={}", pod.name())).expect("write who");
    fs::write(root.join("big"), vec![b'b'; BIG]).expect("write big");
    let certificate =
        "req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=quic.example -days 2";
    let args: Vec<&str> = certificate.split(' ').collect();
    pod.run("openssl", &args).unwrap_or_else(|error| panic!("a certificate: {error:#}"));
    let args = ["-q", "-d", "htdocs", "*", &port.to_string(), "key.pem", "cert.pem"];
    let mut process = pod.start("quic", "gtlsserver", &args);
    wait_for_port(pod, &mut process, port);
    process
}

/// Bytes of `/big`.
pub const BIG: usize = 3_000_000;

/// One QUIC connection of ngtcp2's client, which gets `/big` and a few times `/who`; who answered.
pub fn quic(pod: &Pod, to: SocketAddr) -> Result<String> {
    let folder = pod.work().join("got");
    fs::create_dir_all(&folder)?;
    for file in ["who", "big"] {
        let _ = fs::remove_file(folder.join(file));
    }
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let args = ["-q", "--exit-on-all-streams-close", "--timeout=5s", "--download=got", &address, &port];
    let pages = ["big", "who", "who", "who"].map(|page| format!("https://quic.example/{page}"));
    let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
    pod.run("gtlsclient", &[&args[..], &pages].concat())?;
    let big = fs::metadata(folder.join("big")).context("/big did not come")?.len();
    ensure!(big == BIG as u64, "{big} bytes of /big came");
    Ok(fs::read_to_string(folder.join("who"))
        .context("/who did not come")?
        .trim_start_matches("name=")
        .to_owned())
}

/// Waits until new sockets of `pod` that ask `to` are answered by exactly `names`, and none fails.
#[track_caller]
pub fn udp_settled(pod: &Pod, to: SocketAddr, names: &[&str]) {
    let mut sockets = Sockets::of(pod);
    // How many of forty sockets each name answered; the first that nobody answers ends the count.
    let asked = || {
        let mut seen = BTreeMap::new();
        for socket in 0..40 {
            let heard = sockets.ask(socket, to);
            sockets.close(socket);
            let failed = heard.is_err();
            *seen.entry(heard.map(|heard| heard.name)).or_insert(0) += 1;
            if failed {
                break;
            }
        }
        seen
    };
    until(Duration::from_secs(15), &format!("{to} is answered by {names:?}"), asked, |seen| {
        seen.keys().map(|name| name.as_deref().ok()).eq(names.iter().map(|name| Some(*name)))
    });
}
