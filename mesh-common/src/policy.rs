//! Who may connect: the look-up that decides what comes to a workload with a policy set, connections and datagrams.
//!
//! mesh-core's plan ──`POLICY`, `POLICY_CIDRS`──▶ **[`allowed`]** ◀── `connect()`, `sk_lookup`
//!
//! User space evaluates the policies for every class of sources, every range of addresses and every port that
//! they tell apart; what is left for a connection is the first hit of at most six look-ups. The classes of a
//! proved source are its identity, its namespace and "anybody"; one whose identity nobody has proved has a
//! class of its own. Under each class stand the ports that the policies name, and [`OTHER_PORTS`].
//!
//! Invariants: a set that has no entries closes its destination; a set never changes: a policy that changes
//! is a new set under a new number, so that no connection is decided half by the old and half by the new.
//! Not here: what policies mean (mesh-core's authorise).

use crate::addr::Addr;

/// Key of `POLICY`: what a set says of a class of sources.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// The set.
    pub set: u32,
    /// [`class`].
    pub class: u32,
    /// Number of the range of addresses, from `POLICY_CIDRS`; 0: outside all of them.
    pub addresses: u32,
    /// Target port; 0: all that the set does not name.
    pub port_be: u16,
    /// 1: of datagrams, where the set has others for them ([`tells_datagrams`]); else 0.
    pub datagrams: u16,
}
const _: () = assert!(size_of::<PolicyKey>() == 16);

/// Key of `POLICY_CIDRS`, behind the length of the prefix in bits: the set, all 32 bits of it, and an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyCidr {
    /// The set.
    pub set: u32,
    /// Address.
    pub addr: Addr,
}
const _: () = assert!(size_of::<PolicyCidr>() == 20);

/// A record of `DENIALS`: a connection or a datagram that was refused by policy.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Where it came from; unspecified: not known in `connect()`. With [`OUTWARD`] where it was to go.
    pub source_addr: Addr,
    /// Workload that called; 0: nobody has proved who.
    pub source: u32,
    /// Workload that was called; 0 with [`OUTWARD`].
    pub destination: u32,
    /// Target port.
    pub port_be: u16,
    /// [`crate::record::PROTO_TCP`] or [`crate::record::PROTO_UDP`], and [`OUTWARD`] or not.
    pub proto: u16,
}

/// In [`Denial::proto`]: it was to leave the mesh.
pub const OUTWARD: u16 = 1 << 8;
const _: () = assert!(size_of::<Denial>() == 28);

/// The number of a set without entries: the destination's policies do not fit the map.
pub const CLOSED: u32 = 2;
/// The first number that a set may have; 0 is "no set".
pub const FIRST_SET: u32 = 4;
/// Port of the entry that stands for all that the policies do not name.
pub const OTHER_PORTS: u16 = 0;
/// Number of the addresses that no CIDR of a set holds.
pub const OTHER_ADDRESSES: u32 = 0;
/// Value of an entry: let it in.
pub const ALLOW: u32 = 1;
/// Value of an entry: refuse it.
pub const DENY: u32 = 0;

/// Do other entries hold for datagrams than for connections? So where policies have terms on requests: a connection
/// may still bring one that is allowed, which the proxy sees; a datagram never is one. The second bit of the set's
/// number.
#[inline(always)]
pub const fn tells_datagrams(set: u32) -> bool {
    set & 2 != 0
}

/// Does a set ask where a connection comes from? The lowest bit of its number says so: it is known where the
/// number is, at no look-up.
#[inline(always)]
pub const fn asks_address(set: u32) -> bool {
    set & 1 != 0
}

/// Classes of sources.
pub mod class {
    /// A proved source that the set does not tell from others.
    pub const ANYBODY: u32 = 0;
    /// Nobody has proved who it is.
    pub const UNPROVED: u32 = 1;
    const IDENTITY: u32 = 1 << 30;
    const NAMESPACE: u32 = 2 << 30;

    /// Exactly this identity.
    #[inline(always)]
    pub const fn identity(id: u32) -> u32 {
        IDENTITY | id
    }

    /// Any other identity of this namespace.
    #[inline(always)]
    pub const fn namespace(id: u32) -> u32 {
        NAMESPACE | id
    }
}

/// Who is calling, as far as it is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// Node-local identity id; 0: nobody has proved one.
    pub identity: u32,
    /// Node-local id of its mesh namespace.
    pub namespace: u32,
}

/// Nobody has proved who is calling.
pub const UNPROVED: Caller = Caller { identity: 0, namespace: 0 };

/// How long a flow source proves who is calling once the handshake is done, nanoseconds: for an ACK that is looked
/// up again because the listener uses SYN cookies.
pub const PROOF_NS: u64 = 2_000_000_000;

/// Does a flow source still prove who opens a connection? Once that has been opened it is no proof for another: the
/// other end may have closed, and somebody else may send from the same address and port.
#[inline(always)]
pub const fn proves(established_ns: u64, now_ns: u64) -> bool {
    established_ns == 0 || now_ns.saturating_sub(established_ns) < PROOF_NS
}

/// May this caller connect, or send a datagram? `addresses`: the number of the range that its address is in; `look`
/// reads `POLICY`. A set that says nothing is closed.
#[inline(always)]
pub fn allowed(
    set: u32,
    addresses: u32,
    port_be: u16,
    datagram: bool,
    caller: Caller,
    look: impl Fn(&PolicyKey) -> Option<u32>,
) -> bool {
    let datagrams = (datagram && tells_datagrams(set)) as u16;
    let mut key = PolicyKey { set, class: class::UNPROVED, addresses, port_be, datagrams };
    if caller.identity != 0 {
        key.class = class::identity(caller.identity);
        if let Some(said) = of_class(&mut key, port_be, &look) {
            return said == ALLOW;
        }
        key.class = class::namespace(caller.namespace);
        if let Some(said) = of_class(&mut key, port_be, &look) {
            return said == ALLOW;
        }
        key.class = class::ANYBODY;
    }
    of_class(&mut key, port_be, &look) == Some(ALLOW)
}

/// What the set says of the key's class on this port.
#[inline(always)]
fn of_class(key: &mut PolicyKey, port_be: u16, look: &impl Fn(&PolicyKey) -> Option<u32>) -> Option<u32> {
    key.port_be = port_be;
    if let Some(said) = look(key) {
        return Some(said);
    }
    key.port_be = OTHER_PORTS;
    look(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(class: u32, port: u16) -> PolicyKey {
        PolicyKey { set: 4, class, addresses: 0, port_be: port.to_be(), datagrams: 0 }
    }

    #[track_caller]
    fn check(entries: &[(PolicyKey, u32)], caller: Caller, port: u16, want: bool) {
        let look = |key: &PolicyKey| entries.iter().find(|(k, _)| k == key).map(|(_, said)| *said);
        assert_eq!(allowed(4, OTHER_ADDRESSES, port.to_be(), false, caller, look), want, "{caller:?} {port}");
    }

    #[test]
    fn the_narrowest_class_that_is_told_apart_decides_and_nothing_closes() {
        let cart = Caller { identity: 7, namespace: 3 };
        let other = Caller { identity: 8, namespace: 3 };
        let stranger = Caller { identity: 9, namespace: 4 };
        let entries = [
            (key(class::identity(7), 0), DENY),
            (key(class::identity(7), 80), ALLOW),
            (key(class::namespace(3), 0), ALLOW),
            (key(class::ANYBODY, 0), DENY),
            (key(class::ANYBODY, 443), ALLOW),
        ];
        check(&entries, cart, 80, true);
        check(&entries, cart, 443, false);
        check(&entries, other, 81, true);
        check(&entries, stranger, 80, false);
        check(&entries, stranger, 443, true);
        check(&entries, UNPROVED, 443, false);
        check(&[(key(class::UNPROVED, 0), ALLOW)], UNPROVED, 1, true);
        check(&[], cart, 80, false);
    }

    #[test]
    fn a_proof_is_for_one_handshake() {
        assert!(proves(0, u64::MAX) && proves(5, 4) && proves(5, 5 + PROOF_NS - 1));
        assert!(!proves(5, 5 + PROOF_NS));
    }

    #[test]
    fn datagrams_have_entries_of_their_own_where_the_set_says_so() {
        for (set, want) in [(4, true), (6, false)] {
            let own =
                |key: &PolicyKey| (key.set == set).then_some(if key.datagrams == 1 { DENY } else { ALLOW });
            assert_eq!(allowed(set, OTHER_ADDRESSES, 1, true, UNPROVED, own), want);
            assert!(allowed(set, OTHER_ADDRESSES, 1, false, UNPROVED, own));
        }
    }

    #[test]
    fn a_closed_set_asks_no_address() {
        assert!(!asks_address(CLOSED) && !asks_address(0) && !asks_address(FIRST_SET));
        assert!(asks_address(FIRST_SET | 1));
    }
}
