//! Exact counters of flows: their keys, their values, and how much is noted.

use super::Flow;
use crate::maps::TOTALS_HOMES;
use crate::pick::mix;

const _: () = assert!(TOTALS_HOMES.capacity.is_power_of_two());

/// Key of `FLOW_TOTALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TotalsKey {
    /// Source workload id; 0 with `dest` 0 and `kind` [`DEST_OVERFLOW`]: what did not fit.
    pub source: u32,
    /// Service id or workload id, by `kind`.
    pub dest: u32,
    /// [`DEST_SERVICE`], [`DEST_WORKLOAD`], [`DEST_OUTSIDE`] or [`DEST_OVERFLOW`].
    pub kind: u8,
    /// Application protocol ([`crate::app`]).
    pub protocol: u8,
    /// [`crate::verdict::Verdict`]; it implies the path.
    pub verdict: u8,
    /// 0.
    pub pad: u8,
    /// Workload id of the endpoint that the kernel chose, where the agent asked for that; else 0.
    pub endpoint: u32,
}
const _: () = assert!(size_of::<TotalsKey>() == 16);
impl TotalsKey {
    /// What finds no room.
    pub const OVERFLOW: Self =
        Self { source: 0, dest: 0, kind: DEST_OVERFLOW, protocol: 0, verdict: 0, pad: 0, endpoint: 0 };

    /// The slot of its home in `TOTALS_HOMES`.
    #[inline(always)]
    pub const fn home(&self) -> u32 {
        let who = (self.source as u64) << 32 | self.dest as u64;
        let what = (self.endpoint as u64) << 32
            | (self.kind as u64) << 16
            | (self.protocol as u64) << 8
            | self.verdict as u64;
        (mix(who ^ what.rotate_left(23)) >> 40) as u32 & (TOTALS_HOMES.capacity - 1)
    }

    /// Where a flow counts.
    #[inline(always)]
    pub const fn of(flow: &Flow, by_endpoint: bool) -> Self {
        let (kind, dest) = if flow.service != 0 {
            (DEST_SERVICE, flow.service)
        } else if flow.peer_workload != 0 {
            (DEST_WORKLOAD, flow.peer_workload)
        } else {
            (DEST_OUTSIDE, 0)
        };
        Self {
            source: flow.workload,
            dest,
            kind,
            protocol: flow.protocol,
            verdict: flow.verdict,
            pad: 0,
            endpoint: if by_endpoint { flow.peer_workload } else { 0 },
        }
    }
}

/// `dest` is a service id.
pub const DEST_SERVICE: u8 = 0;
/// `dest` is a workload id.
pub const DEST_WORKLOAD: u8 = 1;
/// `dest` is 0: not a destination of the mesh.
pub const DEST_OUTSIDE: u8 = 2;
/// Everything that did not fit.
pub const DEST_OVERFLOW: u8 = 3;

/// Value of `FLOW_TOTALS`, per CPU. Of UDP only `opened` and `refused` move: nothing ends a conversation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Established; UDP: a socket was given an endpoint for an address.
    pub opened: u64,
    /// Established and closed.
    pub closed: u64,
    /// Begun, never established.
    pub failed: u64,
    /// Refused in `connect()`; UDP: datagrams refused as well.
    pub refused: u64,
    /// Payload bytes acknowledged by the peer, of closed connections.
    pub sent: u64,
    /// Payload bytes received, of closed connections.
    pub received: u64,
    /// Segments sent again, of ended connections.
    pub retransmits: u64,
}
const _: () = assert!(size_of::<Totals>() == 56);

/// Value of `TOTALS_HOMES`, on each CPU: counters of the key that this CPU met here first. What finds the home
/// taken counts in `FLOW_TOTALS`; who reads adds up both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TotalsHome {
    /// [`TotalsHome::EMPTY`], or who is here.
    pub state: u64,
    /// Whose counters, if it is taken.
    pub key: TotalsKey,
    /// The counters.
    pub totals: Totals,
}
const _: () = assert!(size_of::<TotalsHome>() == 80);

impl TotalsHome {
    /// Nobody is here yet.
    pub const EMPTY: u64 = 0;
    /// Somebody is moving in.
    pub const CLAIMED: u64 = 1;
    /// The key is here, for good.
    pub const TAKEN: u64 = 2;
}

/// How much the programs note of a flow's end: their global [`telemetry::GLOBAL`], set when they are loaded.
pub mod telemetry {
    /// Name of the variable.
    pub const GLOBAL: &str = "FLOW_TELEMETRY";
    /// Name of the variable that says (1) whether [`super::TotalsKey::endpoint`] is filled.
    pub const BY_ENDPOINT: &str = "FLOW_BY_ENDPOINT";
    /// Nothing: for benches.
    pub const NONE: u8 = 0;
    /// Exact totals.
    pub const TOTALS: u8 = 1;
    /// Totals, and a record in the ring for each flow that ends.
    pub const FULL: u8 = 2;
}

/// Counters of several CPUs, or of several keys, are added up.
impl core::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        // Taken apart, so that a counter that is added here is not forgotten.
        let Self { opened, closed, failed, refused, sent, received, retransmits } = other;
        self.opened += opened;
        self.closed += closed;
        self.failed += failed;
        self.refused += refused;
        self.sent += sent;
        self.received += received;
        self.retransmits += retransmits;
    }
}
