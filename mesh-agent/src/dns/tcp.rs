//! Questions over TCP: messages behind their lengths, any number of them on a connection.
//!
//! What the mesh knows is answered here. With the first question that it does not, a connection to the resolver is
//! opened in the workload's namespace, for the rest of this one: messages go there and come back as they are, in
//! whatever number and order (a zone transfer is many). When either side ends, both do.
//!
//! Bounds: a message is at most 64 KiB; a side that neither sends nor takes anything for [`IDLE`] ends it. Not here:
//! how many connections a workload may have (accept).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{Said, say};
use crate::path::member::Member;
use crate::path::stats::one;
use crate::path::worker::Worker;

/// Without a message.
const IDLE: Duration = Duration::from_secs(10);
/// To open a connection to the resolver.
const CONNECT: Duration = Duration::from_secs(5);
/// The length before a message.
const LENGTH: usize = 2;

/// A connection whose messages are read whole. Reading may be given up at any time and begun anew.
struct Messages<S> {
    io: S,
    unread: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Messages<S> {
    fn new(io: S) -> Self {
        Self { io, unread: Vec::new() }
    }

    /// The next message with its length before it; `None`: the other side has ended.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(&[high, low]) = self.unread.first_chunk::<LENGTH>() {
                let whole = LENGTH + usize::from(u16::from_be_bytes([high, low]));
                if self.unread.len() >= whole {
                    let rest = self.unread.split_off(whole);
                    return Ok(Some(std::mem::replace(&mut self.unread, rest)));
                }
            }
            self.unread.reserve(1024);
            if self.io.read_buf(&mut self.unread).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(IDLE, self.io.write_all(bytes)).await.map_err(|_| late())?
    }
}

/// What happened next.
enum Event {
    Question(Vec<u8>),
    Answer(Vec<u8>),
    End,
}

/// Serves a connection to its end. An error gives it back: it ended by a failure and is to be reset.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    client: S,
    resolver: SocketAddr,
) -> Result<(), S> {
    let mut client = Messages::new(client);
    match converse(worker, member, &mut client, resolver).await {
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::debug!(workload = member.workload, %resolver, %error, "a connection to a resolver ended");
            Err(client.io)
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    member: &Arc<Member>,
    client: &mut Messages<S>,
    resolver: SocketAddr,
) -> io::Result<()> {
    let counters = &worker.shared.counters;
    let mut upstream: Option<Messages<TcpStream>> = None;
    while !member.usage.gone() {
        let Ok(event) = tokio::time::timeout(IDLE, next(client, upstream.as_mut())).await else {
            return Ok(());
        };
        match event? {
            Event::End => return Ok(()),
            Event::Answer(answer) => client.write(&answer).await?,
            Event::Question(question) => {
                let said = worker.with_snapshot(|snapshot| say(snapshot, &question[LENGTH..], false));
                match said {
                    Said::Answer(answer) => {
                        one(&counters.dns_answered);
                        client.write(&framed(&answer)).await?;
                    }
                    Said::Failure(failure) => {
                        one(&counters.dns_failed);
                        client.write(&framed(&failure)).await?;
                    }
                    Said::Nothing => {
                        let passed = pass_on(worker, member, &mut upstream, &question, resolver).await;
                        one(if passed.is_ok() { &counters.dns_forwarded } else { &counters.dns_failed });
                        passed?;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    client: &mut Messages<S>,
    upstream: Option<&mut Messages<TcpStream>>,
) -> io::Result<Event> {
    let answer = async {
        match upstream {
            Some(upstream) => upstream.next().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        question = client.next() => Ok(question?.map_or(Event::End, Event::Question)),
        answer = answer => Ok(answer?.map_or(Event::End, Event::Answer)),
    }
}

async fn pass_on(
    worker: &Worker,
    member: &Member,
    upstream: &mut Option<Messages<TcpStream>>,
    question: &[u8],
    resolver: SocketAddr,
) -> io::Result<()> {
    let upstream = match upstream {
        Some(upstream) => upstream,
        None => upstream.insert(Messages::new(open(worker, member, resolver).await?)),
    };
    upstream.write(question).await
}

async fn open(worker: &Worker, member: &Member, resolver: SocketAddr) -> io::Result<TcpStream> {
    let socket = worker.sockets.resolving(member.netns.as_fd(), resolver.is_ipv6(), true)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let opened = tokio::time::timeout(CONNECT, socket.connect(resolver)).await;
    let stream = opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A message behind its length. What we answer is below 64 KiB: the wire's own bound.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(LENGTH + message.len());
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_whole_however_they_arrive() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Messages::new(near);
        far.write_all(&[0, 3, b'a']).await.unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(5), near.next()).await;
        assert!(given_up.is_err(), "there is more to come");
        far.write_all(b"bc\0\0\0\x01d\0").await.unwrap();
        for want in [&b"\0\x03abc"[..], b"\0\0", b"\0\x01d"] {
            assert_eq!(near.next().await.unwrap().as_deref(), Some(want));
        }
        drop(far);
        assert_eq!(near.next().await.unwrap(), None, "what is not whole is none");
    }
}
