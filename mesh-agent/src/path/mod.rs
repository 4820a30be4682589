//! The request path, top to bottom.
//!
//! ```text
//! application ─▶ accept      its home worker accepts, and may hand on to a less busy one
//!                intercept   capture record ─▶ which workload calls which service
//!                detect      HTTP/1 or HTTP/2, by what the client says first (http2); what else a port
//!                            speaks is what it declares, or is found out where it asks for that (detect)
//!                routing     TLS: the name that is asked for (tls)
//!                            HTTP: the request ─▶ backend service, by weight        mesh-core::route
//!                authorise   may it be called? asked of workloads of this node         mesh-core::authorise
//!                balance     HTTP: an endpoint a request; TCP: the kernel's choice  mesh-core::balance
//!                resilience  limits and their queue, breakers, faults, ejection for answers, rate limits where
//!                            it is called; a failed connect is tried elsewhere; a stale connection is replaced;
//!                            what a route asks to be tried again is     mesh-core::{resilience, retry}
//!                pool        an idle connection of this workload to that endpoint, else
//!                transport   a new one, from the workload's own namespace, plain or in a tunnel (hbone)
//!                pump        bodies, both ways, one buffer each                     mesh-core::http1
//! endpoint ◀──── telemetry   counters and histograms by source, service, route, outcome
//! ```
//!
//! Files: [`worker`] threads and what their connections share; [`accept`], [`intercept`], [`routing`], [`authorise`],
//! [`resilience`], [`http1`], [`http2`], [`tls`], [`tcp`] the steps; [`hbone`] tunnels; [`link`], [`pump`], [`buffers`] how bytes move; [`transport`], [`pool`] upstream; [`clock`]
//! deadlines without timers; [`member`], [`budget`] what a workload may use; [`stats`] what is counted;
//! [`series`], [`see`] requests, counted and told one by one; [`sockets`] what is asked of the kernel.
//!
//! Invariants: a connection lives on one worker; a request looks at the snapshot once; every buffer, queue and
//! pool is bounded; a refusal has one [`ProxyError`](mesh_core::error::ProxyError), whose reason is in the
//! answer and in the counters; a panic ends one connection.

pub mod accept;
mod account;
mod authorise;
pub mod budget;
pub mod buffers;
pub mod clock;
pub mod detect;
mod ext_authz;
pub mod hash;
pub mod hbone;
pub mod http1;
pub mod http2;
mod inbound;
pub mod intercept;
pub mod judged;
mod link;
pub mod member;
pub mod origin;
pub mod pool;
mod proxy;
pub mod pump;
pub mod resilience;
pub mod routing;
pub mod see;
pub mod series;
pub mod shed;
pub mod sockets;
pub mod stats;
pub mod tcp;
mod tls;
mod told;
pub mod transport;
pub mod tries;
mod whose;
pub mod worker;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::rig::service as test_service;

use std::time::Duration;

pub use budget::Budget;
pub use proxy::{Enrolment, Proxy, ProxyFull, StartError};
pub use sockets::{Leg, Sockets};
pub use stats::ProxyStats;

/// How long things may take and how much there may be of them, for all workloads alike.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Opening an upstream connection.
    pub connect: Duration,
    /// Until a tunnel can be used: TCP, TLS and HTTP/2 together.
    pub tunnel: Duration,
    /// From the answer to a PING of a tunnel, or its beginning, to the next one; and for its answer.
    pub ping: (Duration, Duration),
    /// A tunnel that carries nothing.
    pub tunnel_idle: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// Between two requests of a client.
    pub keep_alive: Duration,
    /// The same, while the agent drains: the next request's answer says that the connection ends.
    pub drain_idle: Duration,
    /// From a request to the first byte of its answer.
    pub response: Duration,
    /// Between two reads of a body.
    pub stream_idle: Duration,
    /// Between two reads of a TCP connection or tunnel.
    pub tcp_idle: Duration,
    /// Between two requests on an upstream connection.
    pub upstream_idle: Duration,
    /// For a client to take the last answer, and between two pieces of what it still sends.
    pub linger: Duration,
    /// Idle upstream connections of one workload to one endpoint, on one worker.
    pub pool_per_key: usize,
    /// Idle upstream connections of one worker.
    pub pool_total: usize,
    /// Structure of HTTP messages.
    pub http: mesh_core::http1::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            tunnel: Duration::from_secs(5),
            ping: (Duration::from_secs(10), Duration::from_secs(20)),
            tunnel_idle: Duration::from_mins(5),
            head: Duration::from_secs(10),
            keep_alive: Duration::from_mins(5),
            drain_idle: Duration::from_secs(1),
            response: Duration::from_mins(5),
            stream_idle: Duration::from_mins(5),
            tcp_idle: Duration::from_hours(1),
            upstream_idle: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            pool_per_key: 256,
            pool_total: 2048,
            // A head and what is added to it fit into one buffer.
            http: mesh_core::http1::Limits { head_bytes: 24 * 1024, ..Default::default() },
        }
    }
}
