//! A spliced connection of the agent to itself, made as a workload's is: the client's socket has a record that asks
//! for splicing, the listener is marked as the agent's, and `sock_ops` does the rest.
//!
//! To port 53, because the programs look at no other connection over loopback.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mesh_common::addr::{self, UNSPECIFIED};
use mesh_common::record::{Capture, Enrolled, FlowKey, SynKey, captured, role};
use mesh_common::splice::{End, other};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use crate::kernel::Kernel;
use crate::sys::{bpf, netns_cookie};

/// No byte for so long is a stall.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long moving a stream may take altogether.
const LONGEST: Duration = Duration::from_secs(10);
const PORT: u16 = mesh_common::dns::PORT_BE.swap_bytes();
/// Bytes that are written and read at once.
pub(super) const BLOCK: usize = 64 << 10;
/// A workload that there is not: nothing is counted for it, and it has no listener in any slot.
pub(in crate::kernel) const NOBODY: u32 = u32::MAX;

/// An entry of `ENROLLED` for a namespace in which nobody is.
pub(super) fn nobody() -> Enrolled {
    Enrolled {
        addr4: UNSPECIFIED,
        addr6: UNSPECIFIED,
        workload: NOBODY,
        identity: 0,
        scope: 0,
        namespace: 0,
        listener_slot: mesh_common::maps::LISTENERS.capacity,
        heartbeat_slot: 0,
        budget_pending: 0,
        flags: 0,
        port4_be: 0,
        port6_be: 0,
    }
}

/// A listener in this thread's namespace.
pub(super) fn listen(kernel: &Kernel, v6: bool) -> io::Result<TcpListener> {
    let ip: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let listener = TcpListener::bind((ip, PORT))?;
    kernel.mark_listener(listener.as_fd(), NOBODY)?;
    Ok(listener)
}

/// A connection to a listener that has not been accepted yet.
pub(super) fn connect(kernel: &Kernel, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.cloexec(), None)?;
    let record = Capture {
        addr: UNSPECIFIED,
        epoch: 0,
        workload: NOBODY,
        service: 0,
        endpoint: 0,
        // Handed over to the accepted socket, as a captured client's is.
        role: role::DIAL,
        identity: 0,
        port_be: 0,
        flags: captured::SPLICE,
    };
    bpf::storage_put(kernel.captured.as_fd(), socket.as_fd(), &record)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    ready(socket.into())
}

fn ready(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Both ends of a connection.
pub(super) struct Pair {
    pub client: TcpStream,
    pub agent: TcpStream,
    /// The client's.
    key: SynKey,
}

impl Pair {
    pub fn open(kernel: &Kernel, listener: &TcpListener) -> io::Result<Self> {
        let client = connect(kernel, listener.local_addr()?)?;
        Self::accept(listener, client)
    }

    pub fn accept(listener: &TcpListener, client: TcpStream) -> io::Result<Self> {
        let agent = ready(listener.accept()?.0)?;
        let (own, peer) = (client.local_addr()?, client.peer_addr()?);
        let flow = FlowKey {
            src: addr::from_ip(own.ip()),
            dst: addr::from_ip(peer.ip()),
            src_port_be: own.port().to_be(),
            dst_port_be: peer.port().to_be(),
        };
        let key = SynKey { netns: netns_cookie(client.as_fd())?, flow, pad: 0 };
        Ok(Self { client, agent, key })
    }

    /// What the programs know of the client's end, and of the agent's.
    pub fn ends(&self, kernel: &Kernel) -> [Option<End>; 2] {
        let ends = kernel.splice_ends.lock();
        [self.key, other(&self.key)].map(|key| ends.get(&key, 0).ok())
    }

    /// Lets an end send through TCP alone, or not any more.
    pub fn only_tcp(&self, kernel: &Kernel, client: bool, only: bool) -> Result<(), String> {
        let [this, that] = if client { [self.key, other(&self.key)] } else { [other(&self.key), self.key] };
        let mut ends = kernel.splice_ends.lock();
        let failed = |error: aya::maps::MapError| format!("map SPLICE_ENDS: {error}");
        let (mut end, peer) = (ends.get(&this, 0).map_err(failed)?, ends.get(&that, 0).map_err(failed)?);
        end.peer = if only { 0 } else { peer.own };
        ends.insert(this, end, 0).map_err(failed)
    }

    /// Both ways: who sends, and who reads.
    pub fn ways(&self) -> [(&'static str, &TcpStream, &TcpStream); 2] {
        [("to the agent", &self.client, &self.agent), ("to the workload", &self.agent, &self.client)]
    }
}

/// The block of a stream that begins at byte `at`: no two words of a stream are alike.
pub(super) fn fill(block: &mut [u8], at: u64) {
    for (word, bytes) in (at / 8..).zip(block.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

/// Sends all of `bytes`; an error says how many were not.
pub(super) fn put(mut to: &TcpStream, bytes: &[u8]) -> Result<(), Stopped> {
    let mut done = 0;
    while done < bytes.len() {
        match to.write(&bytes[done..]) {
            Ok(n) => done += n,
            Err(error) => wait(to, PollFlags::OUT, &error).map_err(|why| Stopped { done, why })?,
        }
    }
    Ok(())
}

/// Fills all of `bytes`, reading until nothing is left to read each time.
pub(super) fn take(mut from: &TcpStream, bytes: &mut [u8]) -> Result<(), Stopped> {
    let mut done = 0;
    while done < bytes.len() {
        match from.read(&mut bytes[done..]) {
            Ok(0) => return Err(Stopped { done, why: "the other end has ended".to_owned() }),
            Ok(n) => done += n,
            Err(error) => wait(from, PollFlags::IN, &error).map_err(|why| Stopped { done, why })?,
        }
    }
    Ok(())
}

/// Bytes stopped moving.
#[derive(Debug)]
pub(super) struct Stopped {
    done: usize,
    pub why: String,
}

fn wait(on: &TcpStream, flags: PollFlags, error: &io::Error) -> Result<(), String> {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Err(error.to_string());
    }
    let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    match poll(&mut [PollFd::new(on, flags)], Some(&timeout)) {
        Ok(0) => Err(format!("nothing more for {} s", PATIENCE.as_secs())),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends the bytes of a stream, which are whole blocks.
pub(super) fn send(to: &TcpStream, bytes: Range<u64>) -> Result<(), String> {
    let mut block = vec![0; BLOCK];
    blocks("sent", bytes, |at| {
        fill(&mut block, at);
        put(to, &block)
    })
}

/// Reads them.
pub(super) fn receive(from: &TcpStream, bytes: Range<u64>) -> Result<(), String> {
    let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    blocks("read", bytes, |at| {
        fill(&mut expected, at);
        take(from, &mut block)?;
        let differ = || Stopped { done: 0, why: "what follows are other bytes than were sent".to_owned() };
        if block == expected { Ok(()) } else { Err(differ()) }
    })
}

fn blocks(
    what: &str,
    bytes: Range<u64>,
    mut each: impl FnMut(u64) -> Result<(), Stopped>,
) -> Result<(), String> {
    let begun = Instant::now();
    for at in bytes.clone().step_by(BLOCK) {
        let done = match each(at) {
            Ok(()) if begun.elapsed() < LONGEST => continue,
            Ok(()) => Stopped { done: BLOCK, why: format!("that took {} s", LONGEST.as_secs()) },
            Err(stopped) => stopped,
        };
        let moved = at + done.done as u64;
        return Err(format!("{moved} of {} bytes were {what}: {}", bytes.end, done.why));
    }
    Ok(())
}
