//! The maps: their names, their sizes, and the hash that says whether pinned maps are ours.
//!
//! The kernel cuts names at 15 bytes; these fit. Sizes are defaults that an agent's configuration may
//! change at first load; a pinned map keeps the size it was made with.

use crate::homes::Home;
use crate::{record as r, sender, splice, transport as t, udp};

/// A map: its name (also its file name in bpffs), key and value sizes in bytes, and default capacity.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// ≤ 15 bytes.
    pub name: &'static str,
    /// Bytes.
    pub key: usize,
    /// Bytes.
    pub value: usize,
    /// Entries (bytes for the ring).
    pub capacity: u32,
}

const fn spec(name: &'static str, key: usize, value: usize, capacity: u32) -> Spec {
    assert!(name.len() <= 15);
    Spec { name, key, value, capacity }
}

/// Workloads of this node, by namespace cookie or cgroup id.
pub const ENROLLED: Spec = spec("ENROLLED", size_of::<r::EnrolledKey>(), size_of::<r::Enrolled>(), 1024);
/// In front of [`ENROLLED`] (see [`crate::homes`]), memory-mapped. Not to be resized, nor are the others' homes.
pub const ENROLLED_HOMES: Spec =
    spec("ENROLLED_HOMES", 4, size_of::<Home<r::EnrolledKey, r::Enrolled>>(), 1024);
/// Virtual addresses.
pub const SERVICES: Spec = spec("SERVICES", size_of::<r::ServiceKey>(), size_of::<r::Service>(), 16_384);
/// In front of [`SERVICES`], memory-mapped.
pub const SERVICE_HOMES: Spec = spec("SERVICE_HOMES", 4, size_of::<Home<r::ServiceKey, r::Service>>(), 4096);
/// Workloads' own addresses.
pub const WORKLOADS: Spec = spec("WORKLOADS", size_of::<r::WorkloadKey>(), size_of::<r::Workload>(), 65_536);
/// Slots of alias tables, memory-mapped.
pub const ENDPOINTS: Spec = spec("ENDPOINTS", 4, size_of::<r::Endpoint>(), 32_768);
/// Counters by endpoint id, memory-mapped.
pub const LOAD: Spec = spec("LOAD", 4, size_of::<r::Load>(), 32_768);
/// Counters by service id, memory-mapped.
pub const SERVICE_LOAD: Spec = spec("SERVICE_LOAD", 4, size_of::<r::Load>(), 8_192);
/// What policies say, by service id, memory-mapped.
pub const RULES: Spec = spec("RULES", 4, size_of::<r::Rules>(), 8_192);
/// Which endpoint a client keeps.
pub const AFFINITY: Spec = spec("AFFINITY", size_of::<r::AffinityKey>(), size_of::<r::Affinity>(), 4_096);
/// Who is calling.
pub const FLOW_SRC: Spec = spec("FLOW_SRC", size_of::<r::FlowKey>(), size_of::<r::FlowSource>(), 32_768);
/// Capture record on a socket.
pub const CAPTURED: Spec = spec("CAPTURED", 4, size_of::<r::Capture>(), 0);
/// Capture record between SYN and acceptance.
pub const CAPTURE_SYN: Spec = spec("CAPTURE_SYN", size_of::<r::SynKey>(), size_of::<r::Capture>(), 16_384);
/// Records waiting, by workload id.
pub const BUDGET: Spec = spec("BUDGET", 4, 8, 4096);
/// The agent's sockets, by [`r::Enrolled::listener_slot`].
pub const LISTENERS: Spec = spec("LISTENERS", 4, 8, 4096);
/// A word per worker, memory-mapped.
pub const HEARTBEAT: Spec = spec("HEARTBEAT", 4, 8, 512);
/// Who lives in a slot of [`FLOWS`], by the low bits of a socket's cookie (see [`crate::flows`]),
/// memory-mapped. Neither is to be resized.
pub const FLOW_HOMES: Spec = spec("FLOW_HOMES", 4, 8, FLOWS.capacity);
/// Flows under way.
pub const FLOWS: Spec = spec("FLOWS", 4, size_of::<r::Flow>(), 16_384);
/// Flows whose home was taken, by socket cookie.
pub const FLOWS_ABROAD: Spec = spec("FLOWS_ABROAD", 8, size_of::<r::Flow>(), 32_768);
/// Where unconnected UDP sockets' datagrams go and whom they hear from (see [`crate::udp`]); the least recently
/// used go first. All of it is allocated at once, 120 bytes an entry.
pub const UDP_STICKY: Spec = spec("UDP_STICKY", size_of::<udp::StickyKey>(), size_of::<udp::Sticky>(), 4_096);
/// Exact counters, per CPU.
pub const FLOW_TOTALS: Spec = spec("FLOW_TOTALS", size_of::<r::TotalsKey>(), size_of::<r::Totals>(), 16_384);
/// In front of [`FLOW_TOTALS`], per CPU: each counts at a home of its own what it met there first. A key whose home
/// is beyond the array's end counts in the hash.
pub const TOTALS_HOMES: Spec = spec("TOTALS_HOMES", 4, size_of::<r::TotalsHome>(), 256);
/// Ended flows, a ring.
pub const FLOW_EVENTS: Spec = spec("FLOW_EVENTS", 0, size_of::<r::FlowEvent>(), 1 << 19);
/// Counts by verdict, per CPU.
pub const VERDICTS: Spec = spec("VERDICTS", 4, 8, crate::verdict::Verdict::COUNT);
/// What policy sets say.
pub const POLICY: Spec = spec("POLICY", size_of::<r::PolicyKey>(), 4, 16_384);
/// Ranges of addresses that policy sets tell apart, by longest prefix.
pub const POLICY_CIDRS: Spec = spec("POLICY_CIDRS", 4 + size_of::<r::PolicyCidr>(), 4, 8_192);
/// Ports and interfaces that are left alone.
pub const EXCLUDE: Spec = spec("EXCLUDE", size_of::<t::ExcludeKey>(), 4, 4_096);
/// Addresses that are left alone, by longest prefix.
pub const EXCLUDE_CIDRS: Spec = spec("EXCLUDE_CIDRS", 4 + size_of::<t::ExcludeCidr>(), 4, 8_192);
/// Who began, of workloads that have policies or take answers alone; the least recently used go first.
pub const UDP_ASKED: Spec = spec("UDP_ASKED", size_of::<t::AskedKey>(), size_of::<t::Asked>(), 2_048);
/// Who sends datagrams to workloads of this node that ask; the least recently used go first.
pub const UDP_SENDERS: Spec =
    spec("UDP_SENDERS", size_of::<r::FlowKey>(), size_of::<sender::Sender>(), 2_048);
/// Word 0: how many entries of [`WORKLOADS`] have a policy set. While there are none nobody has to prove who sends.
pub const POLICED: Spec = spec("POLICED", 4, 8, 1);
/// Ends of connections whose bytes may go past TCP (see [`splice`]), two a connection. Small: it is allocated
/// whether anybody asks or not.
pub const SPLICE: Spec = spec("SPLICE", size_of::<r::SynKey>(), 8, 2048);
/// What is known of them.
pub const SPLICE_ENDS: Spec =
    spec("SPLICE_ENDS", size_of::<r::SynKey>(), size_of::<splice::End>(), SPLICE.capacity);
/// Connections that a policy refused, a ring.
pub const DENIALS: Spec = spec("DENIALS", 0, size_of::<r::Denial>(), 1 << 14);
/// Word 0: epoch of the snapshot that the maps hold.
pub const EPOCH: Spec = spec("EPOCH", 4, 8, 1);
/// One value: the agent, and since when it is going.
pub const AGENT: Spec = spec("AGENT", 4, size_of::<crate::going::Agent>(), 1);

/// All of them.
pub const ALL: &[Spec] = &[
    ENROLLED,
    ENROLLED_HOMES,
    SERVICES,
    SERVICE_HOMES,
    WORKLOADS,
    ENDPOINTS,
    LOAD,
    SERVICE_LOAD,
    RULES,
    AFFINITY,
    FLOW_SRC,
    CAPTURED,
    CAPTURE_SYN,
    BUDGET,
    LISTENERS,
    HEARTBEAT,
    FLOW_HOMES,
    FLOWS,
    FLOWS_ABROAD,
    UDP_STICKY,
    FLOW_TOTALS,
    TOTALS_HOMES,
    FLOW_EVENTS,
    VERDICTS,
    POLICY,
    POLICY_CIDRS,
    EXCLUDE,
    EXCLUDE_CIDRS,
    UDP_ASKED,
    UDP_SENDERS,
    POLICED,
    SPLICE,
    SPLICE_ENDS,
    DENIALS,
    EPOCH,
    AGENT,
];

/// Raised by hand when the meaning of a field changes and its size does not.
const LAYOUT: u64 = 2;

/// FNV-1a over names, sizes and [`LAYOUT`]: stands in the pin path, so that an agent never adopts maps of
/// another shape.
pub const ABI: u64 = {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ LAYOUT;
    let mut i = 0;
    while i < ALL.len() {
        let name = ALL[i].name.as_bytes();
        let mut j = 0;
        while j < name.len() {
            hash = (hash ^ name[j] as u64).wrapping_mul(0x0100_0000_01b3);
            j += 1;
        }
        hash = (hash ^ ALL[i].key as u64).wrapping_mul(0x0100_0000_01b3);
        hash = (hash ^ ALL[i].value as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
};
