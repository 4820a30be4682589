//! One request over an agent's `agent.sock`: a JSON message a packet, descriptors beside it.

use std::{
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    cmsg_space,
    io::{IoSlice, IoSliceMut, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect, recvmsg, sendmsg, socket,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use serde_json::Value;

const ANSWER_MAX: usize = 1 << 20;

/// Sends `request` with `descriptors` (two at most); the answer, where the agent said `ok`.
pub fn request(path: &Path, request: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<Value> {
    exchange(path, request, descriptors).map(|(answer, _)| answer)
}

/// Sends `request`; the JSON of the file that the answer brings.
pub fn request_file(path: &Path, request: &Value) -> Result<Value> {
    let (_, file) = exchange(path, request, &[])?;
    let file = std::fs::File::from(file.context("the answer brings no file")?);
    serde_json::from_reader(file).context("the file is no JSON")
}

fn exchange(
    path: &Path,
    request: &Value,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(Value, Option<OwnedFd>)> {
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
    let mut room = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut brought = RecvAncillaryBuffer::new(&mut room);
    // A call with a time limit is not taken up again by itself after a signal.
    let received = retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut buffer)], &mut brought, RecvFlags::CMSG_CLOEXEC)
    })
    .context("no answer of the agent")?;
    let file = brought.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let answer: Value =
        serde_json::from_slice(&buffer[..received.bytes]).context("the agent's answer is no JSON")?;
    if answer["ok"] != true {
        bail!("the agent refused {text}: {}", answer["error"].as_str().unwrap_or("no reason"));
    }
    Ok((answer, file))
}
