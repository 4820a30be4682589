//! Questions over UDP: answered at once, or passed on and the answer brought back.
//!
//! A question that is passed on has a socket of its own, in the workload's namespace and on a port that the kernel
//! draws, connected to the resolver. Whatever the resolver sends there goes back as it came, until an answer with
//! the question's number has. It waits [`PATIENCE`]; a client that asks again asks anew.
//!
//! What is answered with SERVFAIL, so that the client asks its next resolver: questions beyond [`IN_FLIGHT`], and
//! those whose resolver can't be reached. A resolver that is silent stays so.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::clients::Clients;
use super::open::Ears;
use super::{Said, say, wire};
use crate::path::member::{Admitted, Member};
use crate::path::stats::one;
use crate::path::worker::Worker;

/// Questions of one workload that may wait for resolvers.
pub const IN_FLIGHT: u32 = 1024;
/// How long a resolver may take: longer than clients wait.
const PATIENCE: Duration = Duration::from_secs(6);
/// Datagrams taken from one socket before other tasks run.
const SHARE: usize = 32;
/// Pause after a socket that failed, for lack of memory.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of the largest datagram.
const DATAGRAM: usize = 65_535;
/// Of a message: number and flags.
const NUMBER: std::ops::Range<usize> = 0..2;

thread_local! {
    /// What is being received: used and left between two awaits.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM]);
}

/// What hears one workload.
struct Server {
    worker: Rc<Worker>,
    member: Arc<Member>,
    clients: Clients,
    in_flight: Cell<u32>,
}

/// Answers a workload's questions from now on.
pub fn listen(worker: &Rc<Worker>, member: &Arc<Member>, ears: Ears) -> Vec<JoinHandle<()>> {
    let server = Rc::new(Server {
        worker: worker.clone(),
        member: member.clone(),
        clients: ears.clients,
        in_flight: Cell::new(0),
    });
    let hear = |socket| match UdpSocket::from_std(socket) {
        Ok(socket) => Some(tokio::task::spawn_local(hear(server.clone(), Rc::new(socket)))),
        Err(error) => {
            tracing::error!(workload = member.workload, %error, "a socket for questions is unusable");
            None
        }
    };
    ears.sockets.into_iter().filter_map(hear).collect()
}

async fn hear(server: Rc<Server>, socket: Rc<UdpSocket>) {
    loop {
        for _ in 0..SHARE {
            if socket.readable().await.is_err() {
                return;
            }
            let heard = BUFFER.with_borrow_mut(|buffer| {
                let (len, from) = socket.try_recv_from(buffer)?;
                Ok((server.attend(&socket, &buffer[..len], from), from))
            });
            match heard {
                Ok((Some(question), from)) => {
                    let pass = pass_on(server.clone(), socket.clone(), question, from);
                    drop(tokio::task::spawn_local(pass));
                }
                Ok((None, _)) => {}
                Err(error) => rest(&error).await,
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn rest(error: &io::Error) {
    if error.kind() != io::ErrorKind::WouldBlock {
        tokio::time::sleep(PAUSE).await;
    }
}

/// A question that is to be passed on, and its place among those that are.
struct Question {
    bytes: Box<[u8]>,
    server: Rc<Server>,
    _open: Admitted,
}

impl Drop for Question {
    fn drop(&mut self) {
        self.server.in_flight.set(self.server.in_flight.get() - 1);
    }
}

impl Server {
    /// Answers a question, or gives it back to be passed on.
    fn attend(self: &Rc<Self>, socket: &UdpSocket, bytes: &[u8], from: SocketAddr) -> Option<Question> {
        let counters = &self.worker.shared.counters;
        let (said, counter) = match self.worker.with_snapshot(|snapshot| say(snapshot, bytes, true)) {
            Said::Answer(answer) => (answer, &counters.dns_answered),
            Said::Failure(failure) => (failure, &counters.dns_failed),
            Said::Nothing => {
                let question = self.admit(bytes);
                if question.is_none() {
                    one(&counters.dns_refused);
                    refuse(socket, bytes, from);
                }
                return question;
            }
        };
        one(counter);
        // A client that does not take its answers loses them.
        let _ = socket.try_send_to(&said, from);
        None
    }

    fn admit(self: &Rc<Self>, bytes: &[u8]) -> Option<Question> {
        if self.in_flight.get() >= IN_FLIGHT {
            return None;
        }
        let open = Admitted::new(&self.member, &self.worker.shared)?;
        self.in_flight.set(self.in_flight.get() + 1);
        Some(Question { bytes: bytes.into(), server: self.clone(), _open: open })
    }
}

fn refuse(socket: &UdpSocket, bytes: &[u8], from: SocketAddr) {
    if let Some(failure) = wire::failure(bytes) {
        let _ = socket.try_send_to(&failure, from);
    }
}

async fn pass_on(server: Rc<Server>, socket: Rc<UdpSocket>, question: Question, from: SocketAddr) {
    let asking = ask(&server, &socket, &question.bytes, from);
    let counters = &server.worker.shared.counters;
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(())) => one(&counters.dns_forwarded),
        Ok(Err(error)) => {
            tracing::debug!(workload = server.member.workload, %error, "a question could not be passed on");
            one(&counters.dns_failed);
            refuse(&socket, &question.bytes, from);
        }
        Err(_late) => one(&counters.dns_failed),
    }
}

async fn ask(server: &Server, here: &UdpSocket, bytes: &[u8], from: SocketAddr) -> io::Result<()> {
    let at = here.local_addr()?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the socket that asked is gone");
    let client = server.clients.at(at, from)?.ok_or_else(gone)?;
    let sockets = &server.worker.sockets;
    let resolver = sockets.asked(&client, at).ok_or_else(gone)?;
    let netns = server.member.netns.as_fd();
    let socket = UdpSocket::from_std(sockets.resolving(netns, resolver.is_ipv6(), false)?.into())?;
    socket.connect(resolver).await?;
    socket.send(bytes).await?;
    loop {
        socket.readable().await?;
        let last = BUFFER.with_borrow_mut(|buffer| {
            let len = socket.try_recv(buffer)?;
            here.try_send_to(&buffer[..len], from)?;
            Ok::<_, io::Error>(len >= NUMBER.end && buffer.get(NUMBER) == bytes.get(NUMBER))
        });
        match last {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
