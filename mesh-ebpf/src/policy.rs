//! Policy: may this caller connect? Look-ups and the record of a refusal; the decision is
//! `mesh_common::policy`'s.
//!
//! Asked only where an entry that is loaded already says that its workload has a policy set.

use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::addr::Addr;
use mesh_common::policy::{self, Caller};
use mesh_common::record::{Denial, PROTO_UDP, PolicyCidr};
use mesh_common::verdict::Verdict;

use crate::maps::{DENIALS, POLICY, POLICY_CIDRS};

/// Bits of a whole key: the set and an address.
const WHOLE: u32 = 8 * size_of::<PolicyCidr>() as u32;
const NO_WAKEUP: u64 = 1;

/// The map's key, which aya packs: unaligned, each word of it would be written byte by byte.
#[repr(C)]
struct Aligned {
    length: u32,
    prefix: PolicyCidr,
}

/// May this caller connect to this port, or send a datagram to it? `addresses`: see [`range_of`].
#[inline(always)]
pub fn allowed(set: u32, addresses: u32, port_be: u16, proto: u8, caller: Caller) -> bool {
    // SAFETY: read at once; entries of a set never change.
    policy::allowed(set, addresses, port_be, proto == PROTO_UDP, caller, |key| {
        unsafe { POLICY.get(key) }.copied()
    })
}

/// The number of the range that an address is in, where the set asks.
#[inline(always)]
pub fn range_of(set: u32, addr: &Addr) -> u32 {
    if !policy::asks_address(set) {
        return policy::OTHER_ADDRESSES;
    }
    let key = Aligned { length: WHOLE, prefix: PolicyCidr { set, addr: *addr } };
    // SAFETY: of the same size and fields, and aligned better.
    let key = unsafe { &*(&raw const key).cast::<Key<PolicyCidr>>() };
    POLICY_CIDRS.get(key).copied().unwrap_or(policy::OTHER_ADDRESSES)
}

/// What was called.
#[derive(Clone, Copy)]
pub struct Called {
    /// The workload; 0: nobody knows whose the address is.
    pub workload: u32,
    /// The port.
    pub port_be: u16,
    /// `PROTO_TCP` or `PROTO_UDP`.
    pub proto: u8,
}

/// The verdict of a refusal; leaves a record of it. The ring is small and nobody is woken for it: what it
/// has no room for is counted all the same.
#[inline(always)]
pub fn refused(set: u32, source_addr: &Addr, source: u32, called: Called) -> Verdict {
    if let Some(mut record) = DENIALS.reserve::<Denial>(0) {
        let denial = record.as_mut_ptr();
        // SAFETY: room for one in the ring, ours until it is submitted; every field is written.
        unsafe {
            (*denial).source_addr = *source_addr;
            (*denial).source = source;
            (*denial).destination = called.workload;
            (*denial).port_be = called.port_be;
            (*denial).proto = u16::from(called.proto);
        }
        record.submit(NO_WAKEUP);
    }
    if set == policy::CLOSED { Verdict::PolicyFull } else { Verdict::DeniedByPolicy }
}
