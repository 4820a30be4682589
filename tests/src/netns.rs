//! Named network namespaces.
//!
//! A thread enters a namespace only for the length of a closure: a socket made or a program started there
//! stays in the namespace, the thread comes back. Only the network is switched, so paths of the host
//! (cgroups, bpffs) mean inside what they mean outside.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::shell;

/// A network namespace, known to `ip netns` by its name.
pub struct NetNs {
    name: String,
    file: File,
}

impl NetNs {
    /// Makes it, with loopback up. The [`crate::reaper`] removes it.
    pub fn new(name: &str) -> Result<Self> {
        shell::run(Command::new("ip").args(["netns", "add", name]), "")
            .context("can't make a network namespace: stories run as root")?;
        let file = File::open(format!("/run/netns/{name}"))?;
        let made = Self { name: name.to_owned(), file };
        shell::ip(name, &["link set lo up".to_owned()])?;
        // No duplicate address detection: addresses are usable at once. Reno: BBR, the default
        // here and there, paces even these links, and a namespace may have cubic only if its host allows it.
        made.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        made.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        made.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        Ok(made)
    }

    /// Another handle on it.
    pub fn share(&self) -> Result<Self> {
        Ok(Self { name: self.name.clone(), file: self.file.try_clone()? })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its descriptor.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `inside` with this thread in the namespace.
    pub fn with<T>(&self, inside: impl FnOnce() -> T) -> T {
        let home = File::open("/proc/thread-self/ns/net").expect("own namespace");
        let enter = |file: &File| move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
        enter(&self.file).expect("enter a network namespace");
        let result = inside();
        enter(&home).expect("come back from a network namespace");
        result
    }

    /// Writes `/proc/sys/<path>` of the namespace.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.with(|| fs::write(format!("/proc/sys/{path}"), value))
            .with_context(|| format!("sysctl {path} = {value}"))
    }

    /// `ip` commands, one a line.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        shell::ip(&self.name, lines)
    }

    /// Connects from inside.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.with(|| TcpStream::connect_timeout(&to, timeout))
    }

    /// A plain HTTP GET from inside; the body of a 200.
    pub fn http_get(&self, to: SocketAddr, path: &str) -> Result<String> {
        let timeout = Duration::from_secs(2);
        let mut stream = self.connect(to, timeout).with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply)?;
        let reply = String::from_utf8_lossy(&reply);
        let (head, body) = reply.split_once("\r\n\r\n").context("no HTTP reply")?;
        anyhow::ensure!(
            head.starts_with("HTTP/1.1 200"),
            "{to}{path}: {}",
            head.lines().next().unwrap_or("")
        );
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            return Ok(unchunked(body));
        }
        Ok(body.to_owned())
    }
}

/// The body without its chunk heads.
fn unchunked(mut body: &str) -> String {
    let mut plain = String::new();
    while let Some((head, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(head.trim(), 16).unwrap_or(0);
        if length == 0 || rest.len() < length {
            break;
        }
        plain.push_str(&rest[..length]);
        body = rest[length..].trim_start_matches("\r\n");
    }
    plain
}
