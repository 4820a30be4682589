//! The agent of this node, over its `agent.sock`: a packet out, packets in.
//!
//! Every failure is one sentence with a remedy. Not here: the control plane (`client`).

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_api::local::{Answer, MAX_PACKET, Request, SOCKET};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;

/// The agent waits a few seconds for the control plane, and answers anyway.
const ANSWER: Duration = Duration::from_secs(20);

/// Where the agent of this node is.
#[derive(Args, Debug)]
pub struct RunDir {
    /// The agent's run directory.
    #[arg(long = "run-dir", env = "NODEMESH_RUN_DIR", value_name = "DIR", default_value = "/run/nodemesh")]
    directory: PathBuf,
}

impl RunDir {
    /// Connects.
    pub fn connect(&self) -> Result<Agent> {
        Agent::connect(&self.directory.join(SOCKET))
    }
}

/// A connection to the agent.
pub struct Agent {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Agent {
    fn connect(path: &Path) -> Result<Self> {
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let socket = rustix::net::socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(ANSWER))?;
        }
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?).with_context(|| {
            format!(
                "cannot reach the agent at {}: does mesh-agent run on this node? check --run-dir",
                path.display()
            )
        })?;
        Ok(Self { socket, buffer: vec![0; MAX_PACKET] })
    }

    /// Sends a request, with the descriptors that belong to it: two at most.
    pub fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let text = serde_json::to_vec(request)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            bail!("the descriptors do not fit a packet");
        }
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)
            .context("cannot speak to the agent")?;
        Ok(())
    }

    /// The next packet.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let buffer = self.buffer.as_mut_slice();
        // A call with a time limit is not taken up again by itself after a signal (Ctrl-Z and fg).
        let (read, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()))
                .with_context(|| format!("the agent did not answer within {ANSWER:?}; its log says why"))?;
        if read == 0 {
            bail!("the agent ended the connection; its log says why");
        }
        serde_json::from_slice(&self.buffer[..read]).context("the agent's answer is not one")
    }

    /// A request with one answer.
    pub fn ask(&mut self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Answer> {
        self.send(request, descriptors)?;
        let answer: Answer = self.receive()?;
        if !answer.ok {
            bail!(refusal(answer.error.as_deref()));
        }
        Ok(answer)
    }

    /// From now on an answer may take as long as it likes.
    pub fn be_patient(&self) -> Result<()> {
        Ok(set_socket_timeout(&self.socket, Timeout::Recv, None)?)
    }
}

/// What to say where the agent said no.
pub fn refusal(error: Option<&str>) -> String {
    format!("the agent refused: {}", error.unwrap_or("it gave no reason"))
}
