//! The decisions of the BPF programs, as functions of values. The programs fetch, call one of these, and
//! act; user space runs the same functions for what it simulates or explains.

use crate::record::{Endpoint, Service, flags};
use crate::verdict::Verdict;

/// One draw from an alias table of `len` slots: the slot, and the fraction that is compared with its
/// threshold. The 64-bit product of a uniform 32-bit number and `len` holds both: its high word is uniform
/// over the slots, its low word over the fraction (Lemire, "Fast Random Integer Generation in an Interval",
/// 2019; the bias is below `len / 2³²`).
#[inline(always)]
pub const fn draw(random: u32, len: u32) -> (u32, u32) {
    let product = random as u64 * len as u64;
    ((product >> 32) as u32, product as u32)
}

/// The slot that a draw ends in (Walker's alias method): `None`: this one, else the alias.
#[inline(always)]
pub const fn aliased(slot: &Endpoint, fraction: u32) -> Option<u32> {
    if fraction <= slot.threshold { None } else { Some(slot.alias) }
}

/// Is this slot of the table that `entry` describes? A slot may be rewritten under a reader that still
/// holds an older entry.
#[inline(always)]
pub const fn belongs(slot: &Endpoint, entry: &Service) -> bool {
    slot.service == entry.service && slot.generation == entry.generation
}

/// Where a connection to a service goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Pick from the service's table and go there.
    Kernel,
    /// To the agent.
    Capture,
    /// Pick from the fallback table and go there.
    Bypass,
    /// Refused.
    Refuse(Verdict),
}

/// The way of a connection to a service, given whether the workload's proxy is alive. A service whose
/// tables are empty is refused here: accepting and then closing would look like a crash of the server.
#[inline(always)]
pub const fn way(entry_flags: u32, table_len: u32, fallback_len: u32, proxy_alive: bool) -> Way {
    if entry_flags & flags::PROXY == 0 {
        return if table_len == 0 { Way::Refuse(Verdict::NoEndpoint) } else { Way::Kernel };
    }
    if fallback_len == 0 {
        return Way::Refuse(Verdict::NoEndpoint);
    }
    if proxy_alive {
        return Way::Capture;
    }
    if entry_flags & flags::BYPASS == 0 { Way::Refuse(Verdict::ProxyLost) } else { Way::Bypass }
}

/// The way of a connection to a workload's own address, which has no table.
#[inline(always)]
pub const fn way_direct(entry_flags: u32, proxy_alive: bool) -> Way {
    if entry_flags & flags::PROXY == 0 {
        Way::Kernel
    } else if proxy_alive {
        Way::Capture
    } else if entry_flags & flags::BYPASS != 0 {
        Way::Bypass
    } else {
        Way::Refuse(Verdict::ProxyLost)
    }
}

/// What to do with an inbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// To the application.
    Pass,
    /// To the agent's inbound listener.
    Assign,
    /// To the application although the port needs the proxy, which is gone.
    PassBypassed,
    /// Refused: the proxy is gone.
    Drop,
}

/// An inbound connection to a local workload's port. `authorised`: the flow source says that the agent
/// opened it after asking everything that is to be asked.
#[inline(always)]
pub const fn inbound(entry_flags: u32, authorised: bool, proxy_alive: bool) -> Inbound {
    if entry_flags & flags::INBOUND_PROXY == 0 || authorised {
        Inbound::Pass
    } else if proxy_alive {
        Inbound::Assign
    } else if entry_flags & flags::BYPASS != 0 {
        Inbound::PassBypassed
    } else {
        Inbound::Drop
    }
}

/// How long a worker's heartbeat may be old, nanoseconds. Workers write theirs every [`HEARTBEAT_NS`].
pub const HEARTBEAT_DEAD_NS: u64 = 500_000_000;
/// Nanoseconds between two heartbeats.
pub const HEARTBEAT_NS: u64 = 50_000_000;

/// Is a worker whose last heartbeat was at `beat_ns` alive at `now_ns`? A beat of another CPU may be a
/// little in the future.
#[inline(always)]
pub const fn alive(beat_ns: u64, now_ns: u64) -> bool {
    beat_ns != 0 && now_ns.saturating_sub(beat_ns) < HEARTBEAT_DEAD_NS
}

/// States of `enum tcp_state` that say which FINs were sent and seen.
pub mod tcp {
    /// Our FIN is on its way.
    pub const FIN_WAIT1: u32 = 4;
    /// Our FIN was acknowledged.
    pub const FIN_WAIT2: u32 = 5;
    /// Over.
    pub const CLOSE: u32 = 7;
    /// Their FIN has come.
    pub const CLOSE_WAIT: u32 = 8;
    /// Both FINs; ours came last.
    pub const LAST_ACK: u32 = 9;
    /// Both FINs crossed.
    pub const CLOSING: u32 = 11;
}

/// Payload bytes that the peer acknowledged: `tcp_info.bytes_acked` without SYN and FIN, which it counts as
/// a byte each. `last`: the state before CLOSE. `all_acked`: `snd_una == snd_nxt`.
#[inline(always)]
pub const fn sent(bytes_acked: u64, last: u32, all_acked: bool) -> u64 {
    let fin_sent =
        last == tcp::FIN_WAIT1 || last == tcp::FIN_WAIT2 || last == tcp::CLOSING || last == tcp::LAST_ACK;
    bytes_acked.saturating_sub(if fin_sent && all_acked { 2 } else { 1 })
}

/// Payload bytes received: `tcp_info.bytes_received` without their FIN, which it counts as a byte.
///
/// A socket that goes from FIN_WAIT2 to CLOSE either saw their FIN or was let go without one; then nothing
/// came since it entered FIN_WAIT2. (One that was half closed, received more, and was closed without
/// waiting for the end is taken for the former: a byte too few.)
#[inline(always)]
pub const fn received(bytes_received: u64, last: u32, at_fin_wait2: u32) -> u64 {
    let fin_seen = last == tcp::CLOSE_WAIT
        || last == tcp::LAST_ACK
        || last == tcp::CLOSING
        || (last == tcp::FIN_WAIT2 && bytes_received as u32 != at_fin_wait2);
    bytes_received.saturating_sub(fin_seen as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_and_the_ends_of_the_fraction_are_drawn() {
        assert_eq!(draw(0, 7), (0, 0));
        assert_eq!(draw(u32::MAX, 7).0, 6);
        let mut hits = [0u32; 7];
        for i in 0..7_000u32 {
            hits[draw(i.wrapping_mul(0x9E37_79B9), 7).0 as usize] += 1;
        }
        assert!(hits.iter().all(|&h| (950..1050).contains(&h)), "{hits:?}");
    }

    #[track_caller]
    fn check_way(flags: u32, table: u32, fallback: u32, alive: bool, want: Way) {
        assert_eq!(
            way(flags, table, fallback, alive),
            want,
            "flags {flags} table {table} fallback {fallback} alive {alive}"
        );
    }

    #[test]
    fn the_way_of_a_connection_to_a_service() {
        use flags::{BYPASS, PROXY};
        check_way(0, 3, 0, false, Way::Kernel);
        check_way(0, 0, 0, true, Way::Refuse(Verdict::NoEndpoint));
        check_way(PROXY, 3, 3, true, Way::Capture);
        check_way(PROXY, 3, 0, true, Way::Refuse(Verdict::NoEndpoint));
        check_way(PROXY, 0, 3, true, Way::Capture); // the route sends elsewhere
        check_way(PROXY, 3, 3, false, Way::Refuse(Verdict::ProxyLost));
        check_way(PROXY | BYPASS, 3, 3, false, Way::Bypass);
    }

    #[test]
    fn inbound_fails_closed_unless_told_otherwise() {
        use flags::{BYPASS, INBOUND_PROXY};
        assert_eq!(inbound(0, false, false), Inbound::Pass);
        assert_eq!(inbound(INBOUND_PROXY, false, true), Inbound::Assign);
        assert_eq!(inbound(INBOUND_PROXY, true, true), Inbound::Pass);
        assert_eq!(inbound(INBOUND_PROXY, false, false), Inbound::Drop);
        assert_eq!(inbound(INBOUND_PROXY | BYPASS, false, false), Inbound::PassBypassed);
    }

    #[test]
    fn bytes_are_payload_whoever_closes_first() {
        // 18 sent, 189 received. The peer closes first: both FINs.
        assert_eq!(sent(20, tcp::LAST_ACK, true), 18);
        assert_eq!(received(190, tcp::LAST_ACK, 0), 189);
        // We close first; their FIN comes, or does not.
        assert_eq!(sent(20, tcp::FIN_WAIT2, true), 18);
        assert_eq!(received(190, tcp::FIN_WAIT2, 189), 189);
        assert_eq!(received(189, tcp::FIN_WAIT2, 189), 189);
        // Reset while established, and with a FIN that nobody acknowledged.
        assert_eq!(sent(19, 1, true), 18);
        assert_eq!(received(189, 1, 0), 189);
        assert_eq!(sent(19, tcp::FIN_WAIT1, false), 18);
    }

    #[test]
    fn a_heartbeat_dies_after_half_a_second_and_never_before_it_was_born() {
        assert!(!alive(0, 1));
        assert!(alive(1_000, 1_000 + HEARTBEAT_DEAD_NS - 1));
        assert!(!alive(1_000, 1_000 + HEARTBEAT_DEAD_NS));
        assert!(alive(2_000, 1_000));
    }
}
