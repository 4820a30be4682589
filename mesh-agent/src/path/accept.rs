//! Accepts the connections of a workload on its home worker and decides which worker serves them.
//!
//! A workload's listeners are on one worker (its home), so that descriptors stay few however many workers
//! there are. A home that has more connections than a colleague gives new ones away: the socket moves over a
//! bounded channel and is registered there. A full channel means that it stays.
//!
//! Invariant: one workload's flood takes at most [`SHARE`] accepts before its worker looks at other work.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_common::decide::alive;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::member::{Admitted, Member};
use super::stats::{Direction, one};
use super::transport::Stream;
use super::worker::Worker;
use crate::dns;
use crate::dns::open::Ears;
use crate::sys::monotonic_ns;

/// Connections accepted of one listener before other tasks run.
const SHARE: usize = 16;
/// How many more connections than the least busy worker a home keeps.
const AHEAD: u64 = 2;
/// Pause after an `accept` that failed, mostly for lack of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// A workload's listeners.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Captured connections, IPv4 and IPv6.
    pub out: Vec<TcpListener>,
    /// Inbound connections.
    pub inbound: Vec<TcpListener>,
    /// Questions to resolvers.
    pub dns: Option<Ears>,
}

/// An accepted connection on its way to the worker that serves it.
pub struct Job {
    /// The socket.
    pub socket: Socket,
    /// Its place in the budget.
    pub admitted: Admitted,
    /// Which listener it came from.
    pub direction: Direction,
}

/// An accepted socket.
pub enum Socket {
    /// Registered with the runtime of the worker that serves it.
    Here(TcpStream),
    /// On its way to another worker.
    Moved(std::net::TcpStream),
}

impl Socket {
    /// As a stream of this worker.
    pub fn into_stream(self) -> io::Result<Stream> {
        match self {
            Self::Here(socket) => Stream::accepted(socket),
            Self::Moved(socket) => Stream::accepted(TcpStream::from_std(socket)?),
        }
    }
}

/// Accepts on all listeners of a workload. A listener that can't be used is logged, and the others go on.
pub fn listen(worker: &Rc<Worker>, member: &Arc<Member>, listeners: Listeners) -> Vec<JoinHandle<()>> {
    let out = listeners.out.into_iter().map(|l| (l, Direction::Out));
    let inbound = listeners.inbound.into_iter().map(|l| (l, Direction::In));
    let questions = listeners.dns.map_or_else(Vec::new, |ears| dns::udp::listen(worker, member, ears));
    out.chain(inbound)
        .filter_map(|(listener, direction)| {
            let ready =
                listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
            match ready {
                Ok(ready) => Some(tokio::task::spawn_local(accept_all(
                    worker.clone(),
                    member.clone(),
                    ready,
                    direction,
                ))),
                Err(error) => {
                    tracing::error!(workload = member.workload, ?direction, %error, "listener is unusable");
                    None
                }
            }
        })
        .chain(questions)
        .collect()
}

async fn accept_all(
    worker: Rc<Worker>,
    member: Arc<Member>,
    listener: tokio::net::TcpListener,
    direction: Direction,
) {
    loop {
        for _ in 0..SHARE {
            match listener.accept().await {
                Ok((socket, _)) => place(&worker, &member, socket, direction),
                // The client gave up between its SYN and now.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                // Descriptors or memory are short. Trying again at once would only burn time.
                Err(_) => {
                    one(&worker.shared.counters.accept_failed);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

fn place(worker: &Rc<Worker>, member: &Arc<Member>, socket: TcpStream, direction: Direction) {
    let counters = &worker.shared.counters;
    one(match direction {
        Direction::Out => &counters.accepted_out,
        Direction::In => &counters.accepted_in,
    });
    let Some(mut admitted) = Admitted::new(member, &worker.shared) else {
        one(&counters.budget_connections);
        return reset(socket);
    };
    let Some(seat) = less_busy(worker).map(|index| &worker.common.seats[index]) else {
        return worker.serve(Job { socket: Socket::Here(socket), admitted, direction });
    };
    let Ok(permit) = seat.jobs.try_reserve() else {
        return worker.serve(Job { socket: Socket::Here(socket), admitted, direction });
    };
    if let Ok(socket) = socket.into_std() {
        one(&counters.handed_on);
        admitted.move_to(&seat.shared);
        permit.send(Job { socket: Socket::Moved(socket), admitted, direction });
    }
}

/// The least busy colleague, if this worker (the new connection included) is ahead of it. A colleague that
/// hangs, by the kernel's own rule, gets nothing, however little it has.
fn less_busy(worker: &Worker) -> Option<usize> {
    let seats = &worker.common.seats;
    let open = |i: usize| seats[i].shared.counters.open.load(Relaxed);
    let least = (0..seats.len()).min_by_key(|&i| open(i))?;
    if open(worker.index as usize) < open(least) + AHEAD {
        return None;
    }
    let now = monotonic_ns();
    let lives = |i: usize| alive(seats[i].shared.beat_ns.load(Relaxed), now);
    let least = (0..seats.len()).filter(|&i| lives(i)).min_by_key(|&i| open(i))?;
    (open(worker.index as usize) >= open(least) + AHEAD).then_some(least)
}

/// Closes a connection that is not served.
fn reset(socket: TcpStream) {
    if let Ok(stream) = Stream::accepted(socket) {
        stream.reset();
    }
}
