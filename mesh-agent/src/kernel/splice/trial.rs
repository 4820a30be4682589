//! Tries splicing on this kernel, with real connections in a network namespace of its own.
//!
//! What is tried is what applications rely on and kernels are known to get wrong. Every step is tried, whatever
//! became of those before, so that the reason names all that is amiss. It takes some tenths of a second, and where a
//! kernel stalls some seconds.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mesh_common::record::{EnrolledKey, KIND_NETNS};
use rustix::net::SendFlags;

use super::pair::{BLOCK, NOBODY, PATIENCE, Pair, connect, fill, listen, nobody, put, receive, send, take};
use crate::kernel::Kernel;
use crate::sys::{defer_accept, in_private_netns, netns_cookie};

/// Bytes of the stream that goes each way.
const STREAM: u64 = 64 << 20;
/// A reader that has stopped must not take more than this.
const BOUND: u64 = 8 << 20;
/// A sender that could not send for so long is held.
const HELD: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes that a reader is asked for by `FIONREAD`.
const UNREAD: usize = 1000;
const DEFER_SECONDS: i32 = 5;

/// A step of the trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is tried.
    pub name: &'static str,
    /// Why it failed.
    pub failed: Option<String>,
}

impl Step {
    /// "name: why", where it failed.
    pub fn failure(&self) -> Option<String> {
        self.failed.as_ref().map(|why| format!("{}: {why}", self.name))
    }
}

type Tried = fn(&Kernel, &TcpListener) -> Result<(), String>;

const STEPS: [(&str, Tried); 6] = [
    ("redirection", redirected),
    ("FIONREAD", unread_is_shown),
    ("order with TCP_DEFER_ACCEPT", in_order),
    ("a reader that stops", held_back),
    ("64 MiB each way", both_ways),
    ("a blocking read", waits),
];

impl Kernel {
    /// Takes back what an agent has left that ended during its trial.
    pub(in crate::kernel) fn forget_trial(&self) {
        let mut enrolled = self.enrolled.lock();
        for (key, _) in enrolled.all().unwrap_or_default().into_iter().filter(|(_, v)| v.workload == NOBODY) {
            if let Err(error) = enrolled.remove(&key, Instant::now()) {
                tracing::warn!(%error, "the namespace of a trial stays enrolled");
            }
        }
    }

    /// Tries every step; an error where it did not come to that.
    pub(super) fn trial(&self) -> Result<Vec<Step>, String> {
        in_private_netns(|| {
            // A namespace may be without IPv6.
            let v4 = listen(self, false)?;
            let listeners: Vec<_> = [Some(v4), listen(self, true).ok()].into_iter().flatten().collect();
            let key = EnrolledKey { kind: KIND_NETNS, id: netns_cookie(listeners[0].as_fd())? };
            self.enrol(key, &nobody()).map_err(io::Error::other)?;
            let tried = STEPS.map(|(name, tried)| {
                let failed = listeners.iter().find_map(|listener| tried(self, listener).err());
                tracing::debug!(name, failed, "splicing was tried");
                Step { name, failed }
            });
            self.unenrol(key).map_err(io::Error::other)?;
            Ok(tried.into())
        })
        .map_err(|error| format!("it could not be tried: {error}"))
    }
}

fn pair(kernel: &Kernel, listener: &TcpListener) -> Result<Pair, String> {
    Pair::open(kernel, listener).map_err(|error| format!("no connection: {error}"))
}

/// One byte each way.
fn exchange(pair: &Pair) -> Result<(), String> {
    for (way, from, to) in pair.ways() {
        let moved = put(from, &[7]).and_then(|()| take(to, &mut [0]));
        moved.map_err(|stopped| format!("one byte {way}: {}", stopped.why))?;
    }
    Ok(())
}

/// Do bytes go past TCP at all? Else the other steps would say nothing.
fn redirected(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let pair = pair(kernel, listener)?;
    exchange(&pair)?;
    exchange(&pair)?;
    for ((way, ..), end) in pair.ways().into_iter().zip(pair.ends(kernel)) {
        let end = end.ok_or_else(|| format!("the end that sends {way} was not registered"))?;
        if end.times == 0 {
            return Err(format!("no byte goes past TCP {way}"));
        }
    }
    Ok(())
}

/// An application asks how much it can read, and reads so much: told 0, it waits for ever. Told of bytes that went
/// past TCP, of such that came through it, and of both.
fn unread_is_shown(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let pair = pair(kernel, listener)?;
    exchange(&pair)?;
    for (client, (way, from, to)) in [true, false].into_iter().zip(pair.ways()) {
        for (name, through) in
            [("past TCP", &[false][..]), ("through TCP", &[true]), ("both ways", &[false, true])]
        {
            for tcp in through {
                pair.only_tcp(kernel, client, *tcp)?;
                put(from, &[7; UNREAD]).map_err(|stopped| format!("{way}: {}", stopped.why))?;
            }
            let unread = (through.len() * UNREAD) as u64;
            let shown = shown(to, unread).map_err(|error| format!("{way}: {error}"))?;
            if shown != unread {
                return Err(format!("{way}: {shown} of {unread} unread bytes are shown that came {name}"));
            }
            let read = take(to, &mut vec![0; through.len() * UNREAD]);
            read.map_err(|stopped| format!("{way}: {}", stopped.why))?;
        }
    }
    Ok(())
}

/// What `FIONREAD` says: so much, or not even after a while.
fn shown(reader: &TcpStream, unread: u64) -> io::Result<u64> {
    let begun = Instant::now();
    loop {
        let shown = rustix::io::ioctl_fionread(reader)?;
        if shown == unread || begun.elapsed() > HELD {
            return Ok(shown);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The client sends before the agent's end is there, and goes on while it comes.
fn in_order(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    defer_accept(listener.as_fd(), DEFER_SECONDS).map_err(failed)?;
    let tried = deferred(kernel, listener);
    defer_accept(listener.as_fd(), 0).map_err(failed)?;
    tried
}

fn deferred(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let failed = |error: io::Error| format!("no connection: {error}");
    let client = connect(kernel, listener.local_addr().map_err(failed)?).map_err(failed)?;
    let whole = 16 * BLOCK as u64;
    std::thread::scope(|scope| {
        // Small pieces: some before the agent's end is there, some behind bytes that wait unread in TCP.
        let (to, mut block) = (&client, vec![0; BLOCK]);
        fill(&mut block, 0);
        let mut pieces = block.chunks(1000);
        for piece in pieces.by_ref().take(20) {
            put(to, piece).map_err(|stopped| stopped.why)?;
        }
        let pair = Pair::accept(listener, client.try_clone().map_err(failed)?).map_err(failed)?;
        let reader = scope.spawn(move || receive(&pair.agent, 0..whole));
        let rest = pieces.try_for_each(|piece| put(to, piece)).map_err(|stopped| stopped.why);
        let sent = rest.and_then(|()| send(to, BLOCK as u64..whole));
        joined(reader).and(sent)
    })
}

/// Whoever does not read holds its sender, and loses nothing.
fn held_back(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let pair = pair(kernel, listener)?;
    exchange(&pair)?;
    for (way, from, to) in pair.ways() {
        let sent = flood(from).map_err(|error| format!("{way}: {error}"))?;
        if sent.bytes >= BOUND {
            return Err(format!("one that reads nothing takes more than {} MiB {way}", BOUND >> 20));
        }
        std::thread::scope(|scope| {
            let last = sent.bytes.next_multiple_of(BLOCK as u64);
            let reader = scope.spawn(move || receive(to, 0..last));
            let rest = put(from, &sent.unsent).map_err(|stopped| stopped.why);
            joined(reader).and(rest)
        })
        .map_err(|error| format!("{way}, after {} bytes had waited: {error}", sent.bytes))?;
    }
    Ok(())
}

/// What was sent to one that does not read.
struct Flood {
    bytes: u64,
    /// The rest of the block that was begun.
    unsent: Vec<u8>,
}

/// Sends until nothing more is taken for a while, or too much was.
fn flood(mut to: &TcpStream) -> io::Result<Flood> {
    let mut block = vec![0; BLOCK];
    let (mut bytes, mut done, mut since) = (0, BLOCK, Instant::now());
    while bytes < BOUND && since.elapsed() < HELD {
        if done == BLOCK {
            fill(&mut block, bytes);
            done = 0;
        }
        match to.write(&block[done..]) {
            Ok(n) => (bytes, done, since) = (bytes + n as u64, done + n, Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(Flood { bytes, unsent: block.split_off(done) })
}

/// Both ways at once, and the bytes are compared.
fn both_ways(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let pair = pair(kernel, listener)?;
    std::thread::scope(|scope| {
        let ways = pair.ways().map(|(way, from, to)| {
            let sender = scope.spawn(move || send(from, 0..STREAM));
            (way, sender, scope.spawn(move || receive(to, 0..STREAM)))
        });
        let mut done = ways.map(|(way, sender, receiver)| {
            let received = joined(receiver);
            received.and(joined(sender)).map_err(|error| format!("{way}: {error}"))
        });
        done.iter_mut().try_for_each(|done| std::mem::replace(done, Ok(())))
    })?;
    let moved = |end: Option<mesh_common::splice::End>| end.is_some_and(|end| end.moved > 0);
    if pair.ends(kernel).into_iter().all(moved) { Ok(()) } else { Err("no byte went past TCP".to_owned()) }
}

/// A thread that waits for bytes goes on waiting while another one sends on the same socket.
fn waits(kernel: &Kernel, listener: &TcpListener) -> Result<(), String> {
    let pair = pair(kernel, listener)?;
    exchange(&pair)?;
    for (way, from, to) in pair.ways() {
        let failed = |error: io::Error| format!("{way}: {error}");
        to.set_nonblocking(false).map_err(failed)?;
        to.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || { to }.read(&mut [0]));
            // It waits by now. That there is room to send again wakes it, and is nothing to it.
            std::thread::sleep(HELD);
            let mut full = vec![0; BLOCK];
            let begun = Instant::now();
            let mut sent = 0;
            while sent < BOUND && begun.elapsed() < PATIENCE / 4 {
                match rustix::net::send(to, &full, SendFlags::DONTWAIT) {
                    Ok(n) => sent += n as u64,
                    Err(rustix::io::Errno::AGAIN) => std::thread::sleep(PAUSE),
                    Err(error) => return Err(error.to_string()),
                }
            }
            let mut left = sent;
            while left > 0 {
                let n = full.len().min(left as usize);
                take(from, &mut full[..n]).map_err(|stopped| stopped.why)?;
                left -= n as u64;
            }
            put(from, &[7]).map_err(|stopped| stopped.why)?;
            match reader.join() {
                Ok(Ok(1)) => Ok(()),
                Ok(Ok(_)) => Err("it ends".to_owned()),
                Ok(Err(error)) => Err(format!("it fails while another thread sends: {error}")),
                Err(_) => Err("a thread of the trial panicked".to_owned()),
            }
        })
        .map_err(|why| format!("{way}: {why}"))?;
        to.set_nonblocking(true).map_err(failed)?;
    }
    Ok(())
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<(), String>>) -> Result<(), String> {
    thread.join().unwrap_or_else(|_| Err("a thread of the trial panicked".to_owned()))
}
