//! DNS in pods: resolvers, dig, raw messages, programs that read a `resolv.conf`.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::Result;

use crate::{
    eventually,
    pod::Pod,
    process::Process,
    udp::{start_dnsmasq, wait_for_port},
};

const PYTHON: &str = "/usr/bin/python3";

/// Starts dnsmasq on port 53, UDP and TCP, with these of its own arguments; what it is asked is in its log.
#[track_caller]
pub fn resolver(pod: &Pod, args: &[&str]) -> Process {
    let own = ["--log-queries", "--edns-packet-max=4096"];
    start_dnsmasq(pod, "resolver", 53, &[&own[..], args].concat())
}

/// What dig saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dug {
    /// `NOERROR`, `NXDOMAIN`, …; empty: no answer.
    pub status: String,
    /// `qr aa rd ra`.
    pub flags: String,
    /// Lines of the question section.
    pub question: String,
    /// Type and data of each answer, in alphabetical order.
    pub answers: Vec<String>,
    /// The same of the authority section.
    pub authority: Vec<String>,
    /// Who answered, as the socket said.
    pub server: String,
    /// All that it printed.
    pub text: String,
}

/// Asks `server` with these of dig's arguments, once; dig refuses an answer that comes from elsewhere.
#[track_caller]
pub fn dig(pod: &Pod, server: impl Into<IpAddr>, args: &[&str]) -> Dug {
    let at = format!("@{}", server.into());
    let text = match pod.run("dig", &[&[at.as_str(), "+tries=1", "+time=3"], args].concat()) {
        Ok(text) => text,
        Err(error) => format!("{error:#}"),
    };
    let mut dug = Dug::default();
    let mut section = "";
    for line in text.lines() {
        if let Some((_, status)) = line.split_once("status: ") {
            dug.status = status.split(',').next().unwrap_or_default().to_owned();
        } else if let Some(flags) = line.strip_prefix(";; flags: ") {
            dug.flags = flags.split(';').next().unwrap_or_default().to_owned();
        } else if let Some(server) = line.strip_prefix(";; SERVER: ") {
            dug.server = server.split('(').next().unwrap_or_default().to_owned();
        } else if line.ends_with(" SECTION:") {
            section = line;
        } else if section.contains("QUESTION") && line.starts_with(';') {
            line.clone_into(&mut dug.question);
        } else if !line.starts_with(';') && !line.is_empty() {
            let record: Vec<&str> = line.split_whitespace().skip(3).collect();
            match section {
                ";; ANSWER SECTION:" => dug.answers.push(record.join(" ")),
                ";; AUTHORITY SECTION:" => dug.authority.push(record.join(" ")),
                _ => {}
            }
        }
    }
    dug.answers.sort();
    dug.text = text;
    dug
}

/// A resolver that says what it heard: to a message it sends `<its first two bytes><pod>|<the rest>` back, over TCP
/// with the length before it; to one whose third byte is `S` it is silent.
const ECHO: &str = r"
import socket, sys, threading
name = sys.argv[1].encode()
def said(message):
    return message[:2] + name + b'|' + message[2:]
def datagrams():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(('::', 53))
    while True:
        message, peer = s.recvfrom(65536)
        if message[2:3] != b'S':
            s.sendto(said(message), peer)
def connection(c):
    f = c.makefile('rb')
    while length := f.read(2):
        answer = said(f.read(int.from_bytes(length, 'big')))
        c.sendall(len(answer).to_bytes(2, 'big') + answer)
    c.close()
l = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
l.bind(('::', 53))
l.listen()
threading.Thread(target=datagrams, daemon=True).start()
while True:
    threading.Thread(target=connection, args=(l.accept()[0],), daemon=True).start()
";

/// Starts the resolver that says what it heard.
#[track_caller]
pub fn echo(pod: &Pod) -> Process {
    let mut process = pod.start("echo", PYTHON, &["-c", ECHO, pod.name()]);
    wait_for_port(pod, &mut process, 53);
    eventually("the resolver hears over TCP", || {
        pod.netns().connect((pod.ip(), 53).into(), Duration::from_millis(200)).is_ok()
    });
    process
}

/// Runs a Python program in a pod to its end; what it printed.
pub fn python(pod: &Pod, program: &str, args: &[&str]) -> Result<String> {
    pod.run(PYTHON, &[&["-c", program], args].concat()).map(|said| said.trim().to_owned())
}

/// Runs a program that finds this text in `/etc/resolv.conf`; what it printed.
pub fn with_resolv_conf(pod: &Pod, text: &str, program: &[&str]) -> Result<String> {
    const RUN: &str = "mount --bind resolv.conf /etc/resolv.conf && exec \"$@\"";
    fs::write(pod.work().join("resolv.conf"), text)?;
    let said = pod.run("unshare", &[&["-m", "sh", "-c", RUN, "sh"], program].concat())?;
    Ok(said.trim().to_owned())
}
