//! Who sends a datagram: what the programs of the sender's side leave for the destination's, on one node.
//!
//! `connect()`, `sendmsg()`; the agent for sockets that were connected before anybody asked ──`UDP_SENDERS`──▶
//! **[`Sender::proves`]** ◀── `sk_lookup` of a destination that has policies
//!
//! Nothing ends a conversation of datagrams, so a proof says for how long it holds. It stands under the sender's
//! own address and port: the programs see to it that a workload which is asked for a proof sends from an address
//! of its own.

use crate::udp::quiet;

/// Value of `UDP_SENDERS`, whose key is a [`crate::record::FlowKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// `CLOCK_MONOTONIC` nanoseconds, by `cookie`.
    pub at_ns: u64,
    /// 0: it was sent to at `at_ns`, or [`crate::udp::TOUCH_NS`] later. [`SEEN`]: the agent saw a connected socket
    /// at `at_ns`. Else the cookie of a socket that was connected at `at_ns`.
    pub cookie: u64,
    /// Node-local workload id.
    pub workload: u32,
    /// Its identity.
    pub identity: u32,
    /// Node-local id of its mesh namespace.
    pub namespace: u32,
    /// 0: a multiple of eight bytes.
    pub pad: u32,
}
const _: () = assert!(size_of::<Sender>() == 32);

/// In the place of a cookie: the agent has found the socket. No cookie is as large.
pub const SEEN: u64 = u64::MAX;

/// How long a datagram with a destination of its own proves who sends from there, nanoseconds. Each one is noted
/// before it leaves.
pub const SENT_HOLDS_NS: u64 = 2_000_000_000;
/// How long a connected socket that the agent has found does. It looks again before that is over.
pub const SEEN_HOLDS_NS: u64 = 60_000_000_000;

impl Sender {
    /// Does it still prove who sends? `connected_ns`: when the socket with a cookie was connected, if it is.
    #[inline(always)]
    pub fn proves(&self, now_ns: u64, connected_ns: impl FnOnce(u64) -> Option<u64>) -> bool {
        match self.cookie {
            0 => !quiet(self.at_ns, now_ns, SENT_HOLDS_NS),
            SEEN => !quiet(self.at_ns, now_ns, SEEN_HOLDS_NS),
            cookie => connected_ns(cookie) == Some(self.at_ns),
        }
    }
}

/// Sources that are tried for a socket that connects and has no port yet.
pub const PORT_DRAWS: u32 = 8;
/// The first of the ports that are drawn from: the kernel's default range.
const FIRST_PORT: u32 = 32_768;
const PORTS: u32 = 28_232;

/// A source port for a random number, network order.
#[inline(always)]
pub const fn drawn_port_be(random: u32) -> u16 {
    ((FIRST_PORT + random % PORTS) as u16).to_be()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(cookie: u64) -> Sender {
        Sender { at_ns: 5, cookie, workload: 1, identity: 2, namespace: 3, pad: 0 }
    }

    #[test]
    fn a_proof_holds_for_as_long_as_its_kind_says() {
        let nobody = |_| None;
        assert!(
            sender(0).proves(5 + SENT_HOLDS_NS - 1, nobody) && !sender(0).proves(5 + SENT_HOLDS_NS, nobody)
        );
        assert!(sender(0).proves(4, nobody), "sent on a CPU that is ahead");
        assert!(sender(SEEN).proves(5 + SEEN_HOLDS_NS - 1, nobody));
        assert!(!sender(SEEN).proves(5 + SEEN_HOLDS_NS, nobody));
        assert!(sender(7).proves(u64::MAX, |cookie| (cookie == 7).then_some(5)));
        assert!(!sender(7).proves(6, |_| Some(6)), "connected again");
        assert!(!sender(7).proves(6, nobody), "closed");
    }

    #[test]
    fn ports_are_drawn_from_the_kernels_range() {
        for random in [0, 1, PORTS - 1, PORTS, u32::MAX] {
            assert!((32_768..=60_999).contains(&u16::from_be(drawn_port_be(random))), "{random}");
        }
    }
}
