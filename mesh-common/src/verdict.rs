//! Why a connection went where it went. Every connection of an enrolled workload gets exactly one
//! [`Verdict`], counted in `VERDICTS` and carried in its flow record.
//!
//! UDP has no connections: a verdict is counted where a socket is given an endpoint for an address, and for
//! each datagram and `connect()` that is refused. What goes elsewhere than to the mesh is not counted.

/// What connection a verdict is about, and what became of it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// A service's endpoint was chosen in the kernel; the connection goes straight there.
    Balanced = 0,
    /// A workload's own address (headless service, direct address): left as it is, and counted.
    Direct = 1,
    /// Not a destination of the mesh: left as it is.
    Outside = 2,
    /// Taken to the agent's listener in the workload's namespace.
    Captured = 3,
    /// Needs the proxy, which is gone; the policy allows the kernel path to the route's endpoints.
    Bypassed = 4,
    /// Inbound: handed to the agent's inbound listener.
    InboundCaptured = 5,
    /// Inbound: needs the proxy, which is gone; passed to the application as the policy allows.
    InboundBypassed = 6,
    /// Inbound: needs the proxy, which is gone: dropped.
    InboundProxyLost = 7,
    /// Needs the proxy, which is gone, and the policy says refuse: `ECONNREFUSED`.
    ProxyLost = 8,
    /// The service has no endpoint that takes connections: `ECONNREFUSED`.
    NoEndpoint = 9,
    /// The table changed under the reader, which was held for longer than a freed table rests:
    /// `EHOSTUNREACH`. A bug if seen in numbers.
    TableChanged = 10,
    /// No room for the socket's record: `ECONNREFUSED` for a captured connection.
    RecordFull = 11,
    /// The workload holds as many connections waiting for the agent as its budget allows: `ECONNREFUSED`.
    BudgetPending = 12,
    /// The hand-over map is full; the agent closes the connection that arrives without a record.
    HandoverFull = 13,
    /// `FLOW_SRC` is full: the connection goes on without proof of its source.
    FlowSourceFull = 14,
    /// `FLOW_TOTALS` is full: counted under the overflow key.
    TotalsFull = 15,
    /// The ring of flow records was full: the record is lost, the totals are not.
    EventLost = 16,
    /// A policy of the destination refuses it: `ECONNREFUSED`; inbound: dropped, which is the same to the client.
    DeniedByPolicy = 17,
    /// The destination's policies do not fit the map `POLICY`: refused, as `DeniedByPolicy` is.
    PolicyFull = 18,
    /// The service has as many connections from this node as its policy allows: `ECONNREFUSED`.
    ServiceLimit = 19,
    /// Every endpoint that could be chosen has as many connections from this node as the policy allows:
    /// `ECONNREFUSED`.
    EndpointLimit = 20,
    /// A `TransportPolicy` leaves it alone: neither balanced nor captured.
    Excluded = 21,
    /// Inbound: needs the proxy, and a `TransportPolicy` leaves it alone: passed to the application.
    InboundExcluded = 22,
    /// Inbound: a datagram that the workload has not asked for, and takes none of: dropped.
    UdpDenied = 23,
    /// No room in `SPLICE` or `SPLICE_ENDS`: the connection goes through TCP, as others do.
    SpliceFull = 24,
    /// Inbound: plaintext from nobody that is proved, and mTLS is strict: dropped.
    PlaintextDenied = 25,
    /// To the outside of the mesh, and to nothing that is on its list: `ECONNREFUSED`.
    EgressDenied = 26,
}

impl Verdict {
    /// How many there are; the size of `VERDICTS`.
    pub const COUNT: u32 = 27;

    /// All of them, in order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Balanced,
        Self::Direct,
        Self::Outside,
        Self::Captured,
        Self::Bypassed,
        Self::InboundCaptured,
        Self::InboundBypassed,
        Self::InboundProxyLost,
        Self::ProxyLost,
        Self::NoEndpoint,
        Self::TableChanged,
        Self::RecordFull,
        Self::BudgetPending,
        Self::HandoverFull,
        Self::FlowSourceFull,
        Self::TotalsFull,
        Self::EventLost,
        Self::DeniedByPolicy,
        Self::PolicyFull,
        Self::ServiceLimit,
        Self::EndpointLimit,
        Self::Excluded,
        Self::InboundExcluded,
        Self::UdpDenied,
        Self::SpliceFull,
        Self::PlaintextDenied,
        Self::EgressDenied,
    ];

    /// The name in metrics, logs and `meshctl`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Direct => "direct",
            Self::Outside => "outside",
            Self::Captured => "captured",
            Self::Bypassed => "bypassed",
            Self::InboundCaptured => "inbound_captured",
            Self::InboundBypassed => "inbound_bypassed",
            Self::InboundProxyLost => "inbound_proxy_lost",
            Self::ProxyLost => "proxy_lost",
            Self::NoEndpoint => "no_endpoint",
            Self::TableChanged => "table_changed",
            Self::RecordFull => "record_full",
            Self::BudgetPending => "budget_pending",
            Self::HandoverFull => "handover_full",
            Self::FlowSourceFull => "flow_source_full",
            Self::TotalsFull => "totals_full",
            Self::EventLost => "event_lost",
            Self::DeniedByPolicy => "denied_by_policy",
            Self::PolicyFull => "policy_full",
            Self::ServiceLimit => "service_limit",
            Self::EndpointLimit => "endpoint_limit",
            Self::Excluded => "excluded",
            Self::InboundExcluded => "inbound_excluded",
            Self::UdpDenied => "udp_denied",
            Self::SpliceFull => "splice_full",
            Self::PlaintextDenied => "plaintext_denied",
            Self::EgressDenied => "egress_denied",
        }
    }

    /// The verdict of a number read from a map.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.get(n as usize).copied()
    }

    /// The errno that the caller of `connect()` sees; `None`: the connection goes on.
    #[inline(always)]
    pub const fn errno(self) -> Option<i32> {
        match self {
            Self::ProxyLost
            | Self::NoEndpoint
            | Self::RecordFull
            | Self::BudgetPending
            | Self::DeniedByPolicy
            | Self::PolicyFull
            | Self::ServiceLimit
            | Self::EndpointLimit
            | Self::EgressDenied => Some(ECONNREFUSED),
            Self::TableChanged => Some(EHOSTUNREACH),
            _ => None,
        }
    }
}

/// `errno` 111.
pub const ECONNREFUSED: i32 = 111;
/// `errno` 113.
pub const EHOSTUNREACH: i32 = 113;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_order_agree() {
        for (i, v) in Verdict::ALL.iter().enumerate() {
            assert_eq!(*v as usize, i);
            assert_eq!(Verdict::from_u8(i as u8), Some(*v));
            assert_eq!(Verdict::ALL.iter().filter(|o| o.name() == v.name()).count(), 1);
        }
        assert_eq!(Verdict::from_u8(Verdict::COUNT as u8), None);
    }
}
