//! One request over an agent's `agent.sock`: a JSON message a packet, descriptors beside it.

use std::{mem::MaybeUninit, os::fd::BorrowedFd, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::{
    cmsg_space,
    io::{IoSlice, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketType, connect, recv, sendmsg, socket,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde_json::Value;

const ANSWER_MAX: usize = 1 << 20;

/// Sends `request` with `descriptors` (two at most); the answer, where the agent said `ok`.
pub fn request(path: &Path, request: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<Value> {
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, Some(Duration::from_secs(10)))?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)
        .with_context(|| format!("connect to {}", path.display()))?;

    let text = request.to_string();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        anyhow::ensure!(
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors)),
            "more than two descriptors"
        );
    }
    sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::empty())?;

    let mut buffer = vec![0; ANSWER_MAX];
    // A call with a time limit is not taken up again by itself after a signal.
    let (_, length) = retry_on_intr(|| recv(&socket, &mut buffer[..], RecvFlags::empty()))
        .context("no answer of the agent")?;
    let answer: Value = serde_json::from_slice(&buffer[..length]).context("the agent's answer is no JSON")?;
    if answer["ok"] != true {
        bail!("the agent refused {text}: {}", answer["error"].as_str().unwrap_or("no reason"));
    }
    Ok(answer)
}
