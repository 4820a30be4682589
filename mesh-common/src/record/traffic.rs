//! What picking an endpoint looks at beside the entry and its slots: load, rules, affinity, Maglev tables.

use super::Endpoint;

/// A slot of `ENDPOINTS` that holds a part of a Maglev table: numbers of slots within the service's table.
/// Where a slot says whose it is, so does this.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaglevRow {
    /// 0.
    pub pad: [u32; 4],
    /// As [`Endpoint::service`].
    pub service: u32,
    /// As [`Endpoint::generation`].
    pub generation: u32,
    /// 0.
    pub pad2: [u32; 2],
    /// Slots.
    pub slots: [u16; MAGLEV_ROW],
}
const _: () = assert!(size_of::<MaglevRow>() == size_of::<Endpoint>());
const _: () = assert!(core::mem::offset_of!(MaglevRow, service) == core::mem::offset_of!(Endpoint, service));
const _: () =
    assert!(core::mem::offset_of!(MaglevRow, generation) == core::mem::offset_of!(Endpoint, generation));
/// Entries of a [`MaglevRow`].
pub const MAGLEV_ROW: usize = 16;

impl MaglevRow {
    /// Its bytes as a slot's.
    pub const fn into_slot(self) -> Endpoint {
        let s = &self.slots;
        Endpoint {
            addr: self.pad,
            service: self.service,
            generation: self.generation,
            endpoint: self.pad2[0],
            workload: self.pad2[1],
            flags: pair(s, 0),
            threshold: pair(s, 2),
            alias: pair(s, 4),
            port_be: s[6],
            pad: s[7],
            policy_set: pair(s, 8),
            weight: pair(s, 10),
            reserved: [pair(s, 12), pair(s, 14)],
        }
    }
}

/// Two neighbours as the word that has their bytes.
const fn pair(slots: &[u16; MAGLEV_ROW], at: usize) -> u32 {
    let ([a, b], [c, d]) = (slots[at].to_ne_bytes(), slots[at + 1].to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Value of `RULES`, by service id: what its policy says. Written before the entry that asks for it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// [`super::flags`] that hold for the agent's own connections, too: they know no entry.
    pub flags: u32,
    /// Endpoints that take connections: of so many some are ejected.
    pub endpoints: u32,
    /// Most connections to the service; 0: no limit.
    pub max_connections: u32,
    /// Most connections to each endpoint; 0: no limit.
    pub max_per_endpoint: u32,
    /// Failures in a row that eject an endpoint.
    pub failures: u32,
    /// Most ejected endpoints, percent.
    pub max_ejected_percent: u32,
    /// Nanoseconds of the first ejection.
    pub ejection_ns: u64,
    /// Nanoseconds that a client keeps its endpoint without a new connection.
    pub affinity_ns: u64,
    /// Milliseconds that `connect()` may wait.
    pub connect_timeout_ms: u32,
    /// Until the SYN is sent again, in ticks of this kernel's clock: the agent knows them.
    pub first_timeout_ticks: u32,
    /// 0: one cache line.
    pub reserved: [u32; 4],
}
const _: () = assert!(size_of::<Rules>() == 64);

/// Key of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Source workload.
    pub workload: u32,
    /// Service id.
    pub service: u32,
}
const _: () = assert!(size_of::<AffinityKey>() == 8);

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// `CLOCK_MONOTONIC` nanoseconds of the last connection.
    pub used_ns: u64,
    /// Endpoint id.
    pub endpoint: u32,
    /// 0.
    pub pad: u32,
}
const _: () = assert!(size_of::<Affinity>() == 16);

/// Value of `LOAD` (by endpoint id) and `SERVICE_LOAD` (by service id, where only `live`, `ejected` and
/// `ejections` count): one cache line each.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections now, those being opened included.
    pub live: u64,
    /// Connections ever begun.
    pub opened: u64,
    /// Connections that failed before they were established.
    pub failures: u64,
    /// `CLOCK_MONOTONIC` nanoseconds until which the endpoint is ejected; 0: not. Who chooses the endpoint
    /// after that writes 0. Of a service: 0.
    pub ejected_until: u64,
    /// Failures since the last connection that was established. Of a service: 0.
    pub failed_in_a_row: u64,
    /// Ejections since the last connection that was established: each is longer. Of a service: 0.
    pub ejections_in_a_row: u64,
    /// Of a service: endpoints whose `ejected_until` is not 0. The agent counts again.
    pub ejected: u64,
    /// Ejections ever.
    pub ejections: u64,
}
const _: () = assert!(size_of::<Load>() == 64);
