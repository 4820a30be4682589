//! What a `TransportPolicy` asks of the programs: what they leave alone, and which datagrams are answers.
//!
//! mesh-agent's transport ──`EXCLUDE`, `EXCLUDE_CIDRS`──▶ **[`excluded`]** ◀── `connect()`, `sendmsg()`, `sk_lookup`
//!
//! Entries stand under the number of the workload that they are for, and are looked at only where an entry
//! that is loaded anyway says that there are some ([`enrolled::EXCLUDES`], `flags::EXCLUDES`).
//!
//! A workload that takes no datagrams that nobody asked for, or those alone that its policies allow, still hears
//! the answers to its own questions: `UDP_ASKED` holds who was asked from which port, and who began
//! ([`Asked::welcomes`]). Connected sockets need none of it: the kernel finds them before it asks.

use crate::addr::Addr;
use crate::udp::quiet;

/// Flags of an [`crate::record::Enrolled`].
pub mod enrolled {
    /// Something that the workload opens is left alone.
    pub const EXCLUDES: u16 = 1;
    /// Of datagrams that come to it some are answers alone: note whom it asks.
    pub const NOTES: u16 = 2;
    /// Its captured connections are spliced: see [`crate::splice`].
    pub const SPLICE: u16 = 4;
    /// What it opens is not encrypted.
    pub const PLAIN: u16 = 16;
    /// Of what is outside of the mesh it opens nothing.
    pub const ALLOW_LIST: u16 = 32;
}

/// Key of `EXCLUDE`: a port or an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExcludeKey {
    /// Node-local workload id.
    pub workload: u32,
    /// [`PORT`] or [`INTERFACE`], and [`INBOUND`] or not.
    pub what: u32,
    /// A port in host order, or the index of an interface in the workload's namespace.
    pub value: u32,
}
const _: () = assert!(size_of::<ExcludeKey>() == 12);

/// The value is a port.
pub const PORT: u32 = 0;
/// The value is the index of an interface.
pub const INTERFACE: u32 = 2;
/// Added where it is about what comes to the workload.
pub const INBOUND: u32 = 1;

/// Key of `EXCLUDE_CIDRS`, behind the length of the prefix in bits: whose, all 32 bits of it, and an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExcludeCidr {
    /// See [`owner`].
    pub owner: u32,
    /// Address.
    pub addr: Addr,
}
const _: () = assert!(size_of::<ExcludeCidr>() == 20);

/// Whose addresses: a workload's, in one direction.
#[inline(always)]
pub const fn owner(workload: u32, inbound: u32) -> u32 {
    workload << 1 | inbound
}

/// Value of an entry: left alone.
pub const EXCLUDED: u32 = 1;
/// Value of an entry of `EXCLUDE_CIDRS`: not left alone, although a shorter prefix is.
pub const KEPT: u32 = 0;

/// One end of what is opened, as exclusions look at it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Whose exclusions.
    pub workload: u32,
    /// [`INBOUND`] or 0.
    pub inbound: u32,
    /// The port, in host order.
    pub port: u32,
    /// The interface; 0: none.
    pub interface: u32,
    /// The address.
    pub addr: Addr,
}

/// Is it left alone? `look` and `covers` read `EXCLUDE` and `EXCLUDE_CIDRS`.
#[inline(always)]
pub fn excluded(
    end: &End,
    look: impl Fn(&ExcludeKey) -> bool,
    covers: impl Fn(&ExcludeCidr) -> bool,
) -> bool {
    let mut key = ExcludeKey { workload: end.workload, what: PORT | end.inbound, value: end.port };
    if look(&key) {
        return true;
    }
    if end.interface != 0 {
        key.what = INTERFACE | end.inbound;
        key.value = end.interface;
        if look(&key) {
            return true;
        }
    }
    covers(&ExcludeCidr { owner: owner(end.workload, end.inbound), addr: end.addr })
}

/// Key of `UDP_ASKED`: whom a workload has sent to, and from which port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AskedKey {
    /// Where the datagram went.
    pub addr: Addr,
    /// Node-local id of the workload that asked.
    pub workload: u32,
    /// The port that was asked.
    pub port_be: u16,
    /// The port that it was asked from, in host order.
    pub local_port: u16,
}
const _: () = assert!(size_of::<AskedKey>() == 24);

/// Value of `UDP_ASKED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `CLOCK_MONOTONIC` nanoseconds of a datagram, at most [`crate::udp::TOUCH_NS`] before the last one.
    pub at_ns: u64,
    /// [`WE`] or [`THEY`].
    pub began: u32,
    /// 0: a multiple of eight bytes.
    pub pad: u32,
}
const _: () = assert!(size_of::<Asked>() == 16);

/// The workload sent first: what comes from there is an answer.
pub const WE: u32 = 1;
/// The other end did, and a policy let it in: what the workload sends is an answer.
pub const THEY: u32 = 0;

impl Asked {
    /// Is a datagram from there an answer?
    #[inline(always)]
    pub const fn welcomes(&self, now_ns: u64, idle_ns: u64) -> bool {
        self.began == WE && !quiet(self.at_ns, now_ns, idle_ns)
    }

    /// Who began, where a datagram goes there now: as before, until both have been silent.
    #[inline(always)]
    pub const fn sent(&self, now_ns: u64, idle_ns: u64) -> u32 {
        if self.began == THEY && !quiet(self.at_ns, now_ns, idle_ns) { THEY } else { WE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_an_interface_or_an_address_excludes_in_its_direction_alone() {
        let end =
            |inbound, port, interface| End { workload: 7, inbound, port, interface, addr: [0, 0, 0, 9] };
        let keys = [
            ExcludeKey { workload: 7, what: PORT, value: 80 },
            ExcludeKey { workload: 7, what: INTERFACE | INBOUND, value: 3 },
            ExcludeKey { workload: 8, what: PORT, value: 81 },
        ];
        let ask = |end: &End, cidr: u32| {
            excluded(end, |key| keys.contains(key), |key| key.owner == cidr && key.addr == [0, 0, 0, 9])
        };
        assert!(ask(&end(0, 80, 0), 0));
        assert!(!ask(&end(INBOUND, 80, 0), 0), "the other direction");
        assert!(!ask(&end(0, 81, 0), 0), "another workload");
        assert!(ask(&end(INBOUND, 1, 3), 0) && !ask(&end(0, 1, 3), 0) && !ask(&end(INBOUND, 1, 0), 0));
        assert!(ask(&end(0, 1, 0), owner(7, 0)) && !ask(&end(INBOUND, 1, 0), owner(7, 0)));
        assert_ne!(owner(7, INBOUND), owner(8, 0));
    }

    #[test]
    fn an_answer_comes_in_time() {
        let asked = |at_ns, began| Asked { at_ns, began, pad: 0 };
        assert!(asked(5, WE).welcomes(10, 6) && !asked(5, WE).welcomes(11, 6));
        assert!(asked(10, WE).welcomes(5, 6), "asked on a CPU that is ahead");
        assert!(!asked(5, THEY).welcomes(6, 6));
    }

    #[test]
    fn what_is_sent_to_who_asked_is_no_question() {
        let asked = |began| Asked { at_ns: 5, began, pad: 0 };
        assert_eq!((asked(THEY).sent(10, 6), asked(THEY).sent(11, 6)), (THEY, WE));
        assert_eq!((asked(WE).sent(10, 6), asked(WE).sent(11, 6)), (WE, WE));
    }
}
