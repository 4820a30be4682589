//! Keys and values of the maps. Keys have no padding: they are compared byte by byte. Sizes are asserted,
//! because both sides compile this file for different targets.

mod shared;
mod totals;
mod traffic;

use crate::addr::Addr;
pub use crate::app;
pub use crate::policy::{Denial, PolicyCidr, PolicyKey};
pub use shared::{MOST_LEVELS, pack_levels};
pub use totals::{
    DEST_OUTSIDE, DEST_OVERFLOW, DEST_SERVICE, DEST_WORKLOAD, Totals, TotalsHome, TotalsKey, telemetry,
};
pub use traffic::{Affinity, AffinityKey, Load, MAGLEV_ROW, MaglevRow, Rules};

/// `proto` of a key: TCP (`IPPROTO_TCP`).
pub const PROTO_TCP: u8 = 6;
/// Where tunnels to a workload arrive, at its own addresses: HBONE's port.
pub const HBONE_PORT: u16 = 15008;
/// `proto` of a key: UDP (`IPPROTO_UDP`).
pub const PROTO_UDP: u8 = 17;

/// Key of `ENROLLED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnrolledKey {
    /// [`KIND_NETNS`] or [`KIND_CGROUP`].
    pub kind: u64,
    /// A network namespace cookie, or a cgroup id.
    pub id: u64,
}
/// The id is a network namespace cookie (`SO_NETNS_COOKIE`).
pub const KIND_NETNS: u64 = 0;
/// The id is that of a cgroup.
pub const KIND_CGROUP: u64 = 1;
const _: () = assert!(size_of::<EnrolledKey>() == 16);

/// Value of `ENROLLED`: what the programs know of a workload of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Own address, IPv4 (v4-mapped); [`crate::addr::UNSPECIFIED`]: none.
    pub addr4: Addr,
    /// Own address, IPv6; unspecified: none.
    pub addr6: Addr,
    /// Node-local workload id; 0: several workloads share this namespace, see [`Enrolled::shared`].
    pub workload: u32,
    /// Node-local identity id.
    pub identity: u32,
    /// The scope that is looked up first: node-local id of the workload's mesh namespace; 0: no service is
    /// scoped to it.
    pub scope: u32,
    /// Node-local id of the workload's mesh namespace, by which policies may know it.
    pub namespace: u32,
    /// Slot of the IPv4 outbound listener in `LISTENERS`; IPv6 and inbound follow, see [`listener`].
    pub listener_slot: u32,
    /// Word of the home worker in `HEARTBEAT`.
    pub heartbeat_slot: u32,
    /// How many captured connections may wait for the agent at once.
    pub budget_pending: u16,
    /// [`crate::transport::enrolled`].
    pub flags: u16,
    /// Where the IPv4 outbound listener is bound on 127.0.0.1.
    pub port4_be: u16,
    /// Where the IPv6 outbound listener is bound on ::1.
    pub port6_be: u16,
}
const _: () = assert!(size_of::<Enrolled>() == 64);

/// Order of a workload's listeners from its `listener_slot` on.
pub mod listener {
    /// Outbound, on 127.0.0.1.
    pub const OUT4: u32 = 0;
    /// Outbound, on ::1.
    pub const OUT6: u32 = 1;
    /// Inbound, assigned by `sk_lookup`.
    pub const IN: u32 = 2;
    /// A UDP socket that hears questions to resolvers, see [`crate::dns`]; empty where the agent answers none.
    pub const DNS: u32 = 3;
    /// Slots a workload holds.
    pub const STRIDE: u32 = 4;
}

/// Key of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Virtual address.
    pub addr: Addr,
    /// The client's mesh namespace id, else 0 for all.
    pub scope: u32,
    /// Service port.
    pub port_be: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`].
    pub proto: u8,
    /// 0 until there are several networks.
    pub network: u8,
}
const _: () = assert!(size_of::<ServiceKey>() == 24);

/// Value of `SERVICES`. A service id names one port of one service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Node-local service id, repeated in each slot of its tables.
    pub service: u32,
    /// Generation of the tables, repeated in each slot.
    pub generation: u32,
    /// First slot of the table in `ENDPOINTS`.
    pub table: u32,
    /// Slots; 0: no endpoint takes connections.
    pub table_len: u32,
    /// First slot of the table used when the proxy is gone ([`flags::BYPASS`]): the route's weights.
    pub fallback: u32,
    /// Slots of it.
    pub fallback_len: u32,
    /// [`flags`].
    pub flags: u32,
    /// Application protocol ([`app`]), a metric label.
    pub protocol: u32,
}
const _: () = assert!(size_of::<Service>() == 32);

/// Flags of `SERVICES`, `WORKLOADS` and `ENDPOINTS` values. One bit means one thing in all of them.
pub mod flags {
    /// Connections need the proxy ("capture").
    pub const PROXY: u32 = 1;
    /// When the proxy is gone take the kernel path; without it: refuse.
    pub const BYPASS: u32 = 2;
    /// The workload lives on this node.
    pub const LOCAL: u32 = 4;
    /// Inbound connections of this port need the proxy.
    pub const INBOUND_PROXY: u32 = 8;
    /// The workload lives on this node and this port of it asks who is calling: leave a flow source.
    pub const ASKS: u32 = 16;
    /// The workload lives on this node, and some of what comes to it is left alone: `EXCLUDE`.
    pub const EXCLUDES: u32 = 32;
    /// The workload lives on another node, whose agent takes tunnels for it: connections need the proxy, unless the
    /// caller's are plain ([`crate::transport::enrolled::PLAIN`]).
    pub const TUNNEL: u32 = 256;
    /// The workload lives on this node, and who connects without a tunnel must be proved.
    pub const STRICT: u32 = 512;
    /// With [`INBOUND_PROXY`]: policies look at requests of this port. No exclusion is a way around them.
    pub const REQUESTS: u32 = 1024;
    /// Of two draws the endpoint with fewer connections for its weight.
    pub const LEAST: u32 = 1 << 16;
    /// By the client, over the rows of a Maglev table that follow the slots.
    pub const MAGLEV: u32 = 1 << 17;
    /// A client keeps its endpoint: `AFFINITY`.
    pub const AFFINE: u32 = 1 << 18;
    /// There may be so many connections: `RULES`.
    pub const LIMITED: u32 = 1 << 19;
    /// Endpoints that fail are left out for a while: `RULES`.
    pub const EJECTS: u32 = 1 << 20;
    /// `connect()` waits for less than the client's kernel would: `RULES`.
    pub const HASTY: u32 = 1 << 21;
    /// Picking an endpoint takes more than a draw.
    pub const PICKY: u32 = LEAST | MAGLEV | AFFINE | LIMITED | EJECTS;
}

/// Key of `WORKLOADS`: an exact address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// Workload address.
    pub addr: Addr,
    /// Target port; 0: any.
    pub port_be: u16,
    /// [`PROTO_TCP`] or [`PROTO_UDP`]; the entry of any port is under [`PROTO_TCP`], for both.
    pub proto: u8,
    /// 0 until there are several networks.
    pub network: u8,
}
const _: () = assert!(size_of::<WorkloadKey>() == 20);

/// Value of `WORKLOADS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Node-local workload id.
    pub workload: u32,
    /// Node-local identity id.
    pub identity: u32,
    /// Policy set of this destination, see [`crate::policy`]; 0: none.
    pub policy_set: u32,
    /// Endpoint id of this port; 0: the port serves no service.
    pub endpoint: u32,
    /// Service id of this port; 0: none.
    pub service: u32,
    /// [`flags`].
    pub flags: u32,
    /// Slot of the workload's inbound listener in `LISTENERS`; 0: it is not enrolled here.
    pub inbound_slot: u32,
    /// Word of its home worker in `HEARTBEAT`; means nothing where `inbound_slot` is 0.
    pub heartbeat_slot: u32,
    /// Application protocol ([`app`]).
    pub protocol: u32,
}
const _: () = assert!(size_of::<Workload>() == 36);

/// Value of `ENDPOINTS`: one slot of an alias table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Endpoint address.
    pub addr: Addr,
    /// Whose table this is.
    pub service: u32,
    /// Which version of it.
    pub generation: u32,
    /// Endpoint id: index of `LOAD`. Never 0.
    pub endpoint: u32,
    /// Node-local id of the workload behind it.
    pub workload: u32,
    /// [`flags`].
    pub flags: u32,
    /// This slot wins where the fraction drawn is at most this; else `alias` does.
    pub threshold: u32,
    /// Slot within the table.
    pub alias: u32,
    /// Target port.
    pub port_be: u16,
    /// 0.
    pub pad: u16,
    /// Policy set of the workload behind it, see [`crate::policy`]; 0: none.
    pub policy_set: u32,
    /// The endpoint's weight, 1 at least.
    pub weight: u32,
    /// 0: room to 64 bytes, one cache line a slot.
    pub reserved: [u32; 2],
}
const _: () = assert!(size_of::<Endpoint>() == 64);

/// A connection's two ends as seen from the one that opened it. Key of `FLOW_SRC`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Who opened it.
    pub src: Addr,
    /// To whom.
    pub dst: Addr,
    /// Source port.
    pub src_port_be: u16,
    /// Destination port.
    pub dst_port_be: u16,
}
const _: () = assert!(size_of::<FlowKey>() == 36);

/// Value of `FLOW_SRC`: the proof, on one node, of who is calling.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSource {
    /// Node-local workload id of the source.
    pub workload: u32,
    /// Its identity.
    pub identity: u32,
    /// Node-local id of its mesh namespace; 0: see [`Flow::namespace`].
    pub namespace: u32,
    /// 1: the agent opened it on the workload's behalf and has authorised it; the destination's side asks no more.
    pub authorised: u32,
    /// `CLOCK_MONOTONIC` nanoseconds at which its handshake was done; 0: not yet. See [`crate::policy::proves`].
    pub established_ns: u64,
}
const _: () = assert!(size_of::<FlowSource>() == 24);

/// Key of `CAPTURE_SYN`: a loopback connection inside one namespace, for the microseconds between its SYN
/// and its acceptance.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SynKey {
    /// Network namespace cookie.
    pub netns: u64,
    /// Source and destination as on the wire.
    pub flow: FlowKey,
    /// 0: key size is a multiple of eight.
    pub pad: u32,
}
const _: () = assert!(size_of::<SynKey>() == 48);

/// Value of `CAPTURED` (on the client's socket, then on the accepted one) and of `CAPTURE_SYN`: what
/// travels with a captured connection. For one that the agent opens to a local application it carries the
/// client that the application is to see: `role` is [`role::DIAL`] and `addr`, `port_be` are the client's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Where the application wanted to go; for [`role::DIAL`] the real client.
    pub addr: Addr,
    /// Snapshot epoch that the kernel decided under.
    pub epoch: u64,
    /// Source workload.
    pub workload: u32,
    /// Service id; 0: a workload's own address.
    pub service: u32,
    /// Endpoint that the kernel chose, or see [`captured::WORKLOAD`]; 0: none.
    pub endpoint: u32,
    /// What this record is: [`role`].
    pub role: u32,
    /// Identity of the source; on the agent's own sockets only.
    pub identity: u32,
    /// Original destination port; for [`role::DIAL`] the real client's.
    pub port_be: u16,
    /// [`captured`].
    pub flags: u16,
}
const _: () = assert!(size_of::<Capture>() == 48);

/// Flags of a [`Capture`].
pub mod captured {
    /// The destination of this leg lives on this node.
    pub const LOCAL: u16 = 1;
    /// The connection's two ends are to be spliced: see [`crate::splice`].
    pub const SPLICE: u16 = 2;
    /// `endpoint` is the number of a workload: no service is served where it goes.
    pub const WORKLOAD: u16 = 4;
}

/// Word of `BUDGET` that no workload has: how many records of dials wait on this node.
pub const BUDGET_DIALS: u32 = 0;

/// What a [`Capture`] on a socket says.
pub mod role {
    /// An application's captured socket.
    pub const CLIENT: u32 = 1;
    /// The agent's listener; its accepted sockets inherit the record and have it filled at acceptance.
    pub const LISTENER: u32 = 2;
    /// An accepted socket of the agent with the client's record on it.
    pub const ACCEPTED: u32 = 3;
    /// The agent's own connection: never captured, balanced or counted as a flow. Only the agent can write
    /// this record, so a workload cannot claim to be the agent.
    pub const LEG: u32 = 4;
    /// A leg to a local application that is to see the real client.
    pub const DIAL: u32 = 5;
    /// A dial whose record has been handed over.
    pub const DIALLED: u32 = 6;
    /// Inherited from a listener, but no record was found: the agent closes it.
    pub const LOST: u32 = 7;
    /// The agent's own socket that asks a resolver: as the workload's, but its questions are not taken again.
    pub const RESOLVES: u32 = 8;
}

/// Value of `FLOWS`: what is known of a connection while it lives. This layout only grows: it holds the "+1"
/// of `LOAD`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What `getpeername` shows where [`flow::SHOW_PEER`] is set.
    pub peer: Addr,
    /// `CLOCK_MONOTONIC` nanoseconds of `connect()`.
    pub start_ns: u64,
    /// Source workload.
    pub workload: u32,
    /// Service id; 0: none.
    pub service: u32,
    /// Endpoint id; 0: none.
    pub endpoint: u32,
    /// Workload id of a known destination; 0: none.
    pub peer_workload: u32,
    /// [`flow`].
    pub flags: u32,
    /// Identity of the source.
    pub identity: u32,
    /// Low word of `bytes_received` when the socket entered FIN_WAIT2; see [`crate::decide::received`].
    pub at_fin_wait2: u32,
    /// Port of `peer`.
    pub peer_port_be: u16,
    /// [`crate::verdict::Verdict`].
    pub verdict: u8,
    /// Application protocol ([`app`]).
    pub protocol: u8,
    /// Node-local id of the source's mesh namespace; 0 on a leg out of a namespace that several workloads share.
    pub namespace: u32,
    /// 0: room to 64 bytes, one cache line a flow.
    pub reserved: u32,
}
const _: () = assert!(size_of::<Flow>() == 64);

/// Flags of a [`Flow`].
pub mod flow {
    /// Show `peer` to `getpeername`.
    pub const SHOW_PEER: u32 = 1;
    /// `LOAD.live` holds one for this socket.
    pub const COUNTED: u32 = 2;
    /// The handshake is done.
    pub const ESTABLISHED: u32 = 4;
    /// Opened by the agent: counts in `LOAD` alone.
    pub const LEG: u32 = 8;
    /// The destination lives on this node and asks who is calling: put a flow source.
    pub const PROVE: u32 = 16;
    /// A flow source was put.
    pub const SOURCED: u32 = 32;
    /// A capture record waits in `CAPTURE_SYN`; `BUDGET` holds one for it.
    pub const PENDING: u32 = 64;
    /// Goes to the agent's listener.
    pub const CAPTURED: u32 = 128;
    /// Its SYN has left, or it was accepted: its end will be seen.
    pub const BEGUN: u32 = 256;
    /// It is to be spliced: `SPLICE`.
    pub const SPLICE: u32 = 512;
    /// It has counted as a failure of its endpoint.
    pub const FAILED: u32 = 1 << 16;
    /// Failures and successes of it are told to its endpoint's counters.
    pub const WATCHED: u32 = super::flags::EJECTS;
    /// Its `connect()` waits for less.
    pub const HASTY: u32 = super::flags::HASTY;
    /// Its end is being counted, or was: what its socket shows is in the totals. Set before they change.
    pub const ENDED: u32 = 1 << 31;
}

/// A record of `FLOW_EVENTS`: a connection that has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// The flow as it was.
    pub flow: Flow,
    /// `CLOCK_MONOTONIC` nanoseconds of its end.
    pub end_ns: u64,
    /// Payload bytes acknowledged by the peer.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Smoothed round-trip time, microseconds.
    pub srtt_us: u32,
    /// Retransmitted segments.
    pub retransmits: u32,
}
const _: () = assert!(size_of::<FlowEvent>() == 96);
