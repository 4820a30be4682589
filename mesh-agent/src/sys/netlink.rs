//! Questions to the kernel over netlink, and the form of its answers. What is asked stands with who asks:
//! addresses (enrol), sockets (kernel, authorise).
//!
//! A socket speaks about the network namespace in which it was made.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
const DATAGRAM: usize = 64 * 1024;
/// Bytes of an answer about one thing.
const ONE: usize = 4096;

/// A conversation about the namespace that the calling thread is in when it begins.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// `None`: routing.
    pub fn new(protocol: Option<Protocol>) -> io::Result<Self> {
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        Ok(Self(rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?))
    }

    /// Asks for all there is; `each` is given kind and body of every answer, until it breaks or all were told.
    pub fn dump(
        &self,
        kind: u16,
        body: &[u8],
        each: impl FnMut(u16, &[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.send(kind, NLM_F_DUMP, body)?;
        self.read(each)
    }

    /// Has something done.
    pub fn ask(&self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, NLM_F_ACK, body)?;
        self.read(|_, _| ControlFlow::Continue(()))
    }

    /// Asks for one thing; `found` is given its body.
    pub fn one(&self, kind: u16, body: &[u8], mut found: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(kind, 0, body)?;
        let mut buffer = [0u8; ONE];
        let (read, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
        messages(&buffer[..read], &mut |_, body| {
            found(body);
            ControlFlow::Break(())
        })
        .map(drop)
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let message = message(kind, NLM_F_REQUEST | flags, body);
        rustix::net::send(&self.0, &message, SendFlags::empty())?;
        Ok(())
    }

    fn read(&self, mut each: impl FnMut(u16, &[u8]) -> ControlFlow<()>) -> io::Result<()> {
        let mut buffer = vec![0u8; DATAGRAM];
        loop {
            // The kernel answers at once; it never blocks for long.
            let (read, _) = rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
            if messages(&buffer[..read], &mut each)? {
                return Ok(());
            }
        }
    }
}

/// A message with its header.
pub fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.resize(HEADER, 0);
    out.extend_from_slice(body);
    out
}

/// Takes one datagram apart; true: nothing follows it, or nothing is wanted.
pub fn messages(mut bytes: &[u8], each: &mut impl FnMut(u16, &[u8]) -> ControlFlow<()>) -> io::Result<bool> {
    while let (Some(len), Some(kind)) = (word32(bytes, 0), word16(bytes, 4)) {
        let len = len as usize;
        if len < HEADER || len > bytes.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message"));
        }
        let body = &bytes[HEADER..len];
        match kind {
            NLMSG_DONE => return Ok(true),
            // 0: done, as was asked.
            NLMSG_ERROR => match word32(body, 0).unwrap_or(0) as i32 {
                0 => return Ok(true),
                code => return Err(io::Error::from_raw_os_error(-code)),
            },
            _ if each(kind, body).is_break() => return Ok(true),
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The attributes (kind, value) that `bytes` consist of; `None` for one that is cut off, and then no more.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(word16(bytes, 0)?), word16(bytes, 2)?);
        let value = bytes.get(4..len);
        let rest = value.and(bytes.get(len.next_multiple_of(4)..));
        bytes = rest.unwrap_or_default();
        Some(value.map(|value| (kind, value)))
    })
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A word in this machine's order.
pub fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// As [`word32`].
pub fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_message_is_an_error() {
        let bytes = message(20, 0, &[0; 12]);
        for cut in [1, 4] {
            let each = &mut |_, _: &[u8]| ControlFlow::Continue(());
            assert!(messages(&bytes[..bytes.len() - cut], each).is_err());
        }
    }

    #[test]
    fn an_attribute_that_is_cut_off_ends_them() {
        let whole = [8u8, 0, 1, 0, 9, 9, 9, 9];
        let ends: [(&[u8], bool); 5] = [
            (&[], false),
            (&[8, 0], false),
            (&[8, 0, 2, 0, 1], true),
            (&[0, 0, 2, 0], true),
            (&[3, 0, 2, 0, 0, 0, 0, 0], true),
        ];
        for (end, cut) in ends {
            let bytes = [&whole[..], end].concat();
            let read: Vec<_> = attributes(&bytes).collect();
            assert_eq!(read[0], Some((1, &[9u8; 4][..])));
            assert_eq!(&read[1..], if cut { &[None][..] } else { &[] }, "{end:?}");
        }
    }
}
