//! UDP's choices: for how long the endpoint that a socket was given for an address stays its own.
//!
//! A datagram to a virtual address goes where the one before it went, as long as the socket sends or hears
//! something there at least every so often, and the endpoint is still in the service's table. Each choice is
//! two entries of `UDP_STICKY`: where the application's address leads, and whom the endpoint's replies are
//! shown to come from.
//!
//! Not here: connected sockets. `connect()` chooses for them, once, and the kernel keeps the choice.

use crate::addr::Addr;
use crate::record::Service;

/// Key of `UDP_STICKY`: an address that a socket sends to or hears from.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StickyKey {
    /// Socket cookie.
    pub cookie: u64,
    /// By `side`: the address that the application named, or the endpoint's.
    pub addr: Addr,
    /// Its port.
    pub port_be: u16,
    /// [`SIDE_ASKED`] or [`SIDE_HEARD`].
    pub side: u16,
    /// 0: key size is a multiple of eight.
    pub pad: u32,
}
const _: () = assert!(size_of::<StickyKey>() == 32);
/// The key is where the application sends, the value where its datagrams go.
pub const SIDE_ASKED: u16 = 0;
/// The key is an endpoint that was sent to, the value the address that its replies are shown to come from.
pub const SIDE_HEARD: u16 = 1;

/// Value of `UDP_STICKY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// The other side's address.
    pub addr: Addr,
    /// `CLOCK_MONOTONIC` nanoseconds of a datagram, at most [`TOUCH_NS`] before the last one.
    pub seen_ns: u64,
    /// Service id; 0: a workload's own address.
    pub service: u32,
    /// Endpoint id.
    pub endpoint: u32,
    /// The service's tables that the endpoint was last found in.
    pub generation: u32,
    /// The other side's port.
    pub port_be: u16,
    /// [`STICKY_SHARED`] or 0.
    pub flags: u16,
}
const _: () = assert!(size_of::<Sticky>() == 40);
/// The socket reaches this endpoint through several addresses: each datagram says anew which one is answered.
pub const STICKY_SHARED: u16 = 1;

/// How old `seen_ns` may become before it is written again: a datagram then costs a look-up and no write.
pub const TOUCH_NS: u64 = 500_000_000;
/// Nanoseconds without a datagram after which the next one is a new choice, unless the agent says otherwise.
pub const IDLE_NS: u64 = 60_000_000_000;
/// The read-only variable of the programs that holds it.
pub const IDLE: &str = "UDP_IDLE_NS";
/// Steps that [`halve`] needs at most: tables of up to 2²⁰ slots.
pub const MOST_STEPS: u32 = 20;

/// What a remembered choice is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It holds.
    Good,
    /// The tables have changed since: it holds if its endpoint is still there.
    Check,
    /// Nothing was sent for long: it holds if something was heard meanwhile.
    Idle,
    /// It is another service's: nothing of it holds.
    Other,
}

/// Does the choice still hold for a datagram to the service that `entry` describes?
#[inline(always)]
pub const fn known(sticky: &Sticky, entry: &Service, now_ns: u64, idle_ns: u64) -> Known {
    if sticky.service != entry.service {
        Known::Other
    } else if quiet(sticky.seen_ns, now_ns, idle_ns) {
        Known::Idle
    } else if sticky.generation != entry.generation {
        Known::Check
    } else {
        Known::Good
    }
}

/// Was nothing seen for this long? Another CPU's clock may be a little ahead.
#[inline(always)]
pub const fn quiet(seen_ns: u64, now_ns: u64, for_ns: u64) -> bool {
    now_ns.saturating_sub(seen_ns) >= for_ns
}

/// One step of the search for an endpoint in a table, whose slots are in the order of endpoint ids: what is
/// left of `range` (first slot, and how many) after `found` was seen in its [`middle`]. After [`MOST_STEPS`]
/// one slot is left: where `wanted` stands, if it stands anywhere. More steps change nothing.
///
/// Without a branch: the verifier would follow both sides of each step.
#[inline(always)]
pub const fn halve(range: (u32, u32), found: u32, wanted: u32) -> (u32, u32) {
    let half = range.1 / 2;
    let all_if_not_behind = ((found as i64 - wanted as i64 - 1) >> 63) as u32;
    (range.0 + (half & all_if_not_behind), range.1 - half)
}

/// The slot that [`halve`] wants to see next.
#[inline(always)]
pub const fn middle(range: (u32, u32)) -> u32 {
    range.0 + range.1 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn sticky(service: u32, generation: u32, seen_ns: u64) -> Sticky {
        Sticky { addr: [0; 4], seen_ns, service, endpoint: 1, generation, port_be: 0, flags: 0 }
    }

    #[test]
    fn a_choice_holds_until_it_is_idle_or_its_table_changes() {
        let entry = Service {
            service: 7,
            generation: 3,
            table: 0,
            table_len: 1,
            fallback: 0,
            fallback_len: 0,
            flags: 0,
            protocol: 0,
        };
        let known = |sticky, now| known(&sticky, &entry, now, IDLE_NS);
        assert_eq!(known(sticky(7, 3, SECOND), SECOND + IDLE_NS - 1), Known::Good);
        assert_eq!(known(sticky(7, 3, SECOND), SECOND + IDLE_NS), Known::Idle);
        assert_eq!(known(sticky(7, 2, SECOND), 2 * SECOND), Known::Check);
        assert_eq!(known(sticky(6, 3, SECOND), 2 * SECOND), Known::Other);
        assert_eq!(known(sticky(7, 3, 2 * SECOND), SECOND), Known::Good, "seen by a CPU that is ahead");
    }

    fn search(table: &[u32], wanted: u32) -> Option<u32> {
        let mut range = (0, table.len() as u32);
        for _ in 0..MOST_STEPS {
            range = halve(range, *table.get(middle(range) as usize)?, wanted);
        }
        Some(table[range.0 as usize]).filter(|found| *found == wanted)
    }

    #[test]
    fn every_endpoint_of_a_table_is_found_and_no_other() {
        let mut table = [0; 300];
        assert_eq!((search(&[u32::MAX], u32::MAX), search(&[0, u32::MAX], 0)), (Some(u32::MAX), Some(0)));
        for len in 0..=table.len() {
            // Gaps: odd ids are in no table.
            for (slot, id) in table[..len].iter_mut().zip((2..).step_by(2)) {
                *slot = id;
            }
            for wanted in 0..2 * len as u32 + 4 {
                let there = wanted >= 2 && wanted % 2 == 0 && wanted <= 2 * len as u32;
                assert_eq!(search(&table[..len], wanted).is_some(), there, "{wanted} among {len}");
            }
        }
    }

    #[test]
    fn the_largest_table_is_searched_in_the_steps_allowed() {
        let mut range = (0, 1 << MOST_STEPS);
        for _ in 0..MOST_STEPS {
            range = halve(range, 0, u32::MAX);
        }
        assert_eq!(range, ((1 << MOST_STEPS) - 1, 1));
        assert!(u64::from(crate::maps::ENDPOINTS.capacity) < 1 << MOST_STEPS);
    }
}
