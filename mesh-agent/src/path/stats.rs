//! What the proxy counts. Each worker counts alone; a scrape adds the workers up. Plain data: names and text
//! formats are telemetry's.
//!
//! Not here: requests, series by series (series).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::hbone::stats::TunnelCounts;
pub use super::series::{BUCKETS_US, RequestKey, Requests, Series};

/// Which way a connection crosses the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// A local workload calls.
    Out,
    /// A local workload is called.
    In,
}

impl Direction {
    /// Label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Spoken {
    /// Opaque bytes: one "request" a connection.
    Tcp,
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// TLS that is not opened: one "request" a connection.
    Tls,
}

impl Spoken {
    /// Label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http1 => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tls => "tls",
        }
    }
}

/// Policies whose matches are counted by name, on each worker; those beyond count as one.
const AUDITS: usize = 1024;
/// The name of those.
const OVERFLOW: &str = "overflow";

/// What policies that audit have matched on one worker.
#[derive(Debug, Default)]
pub struct Audits(Mutex<HashMap<Arc<str>, u64>>);

impl Audits {
    /// One more of this policy.
    pub fn count(&self, policy: &Arc<str>) {
        let mut all = self.0.lock();
        if let Some(count) = all.get_mut(policy) {
            *count += 1;
            return;
        }
        let name = if all.len() < AUDITS { policy.clone() } else { OVERFLOW.into() };
        *all.entry(name).or_default() += 1;
    }

    /// Adds them to others.
    pub fn add_to(&self, sum: &mut HashMap<Arc<str>, u64>) {
        for (policy, count) in &*self.0.lock() {
            *sum.entry(policy.clone()).or_default() += count;
        }
    }
}

/// The inbound connections of one worker on which HTTP is spoken, by client and destination.
#[derive(Debug, Default)]
pub struct Inbound(Mutex<HashSet<(SocketAddr, SocketAddr)>>);

impl Inbound {
    /// Notes one.
    pub fn add(&self, client: SocketAddr, wanted: SocketAddr) {
        self.0.lock().insert((client, wanted));
    }

    /// Forgets it.
    pub fn remove(&self, client: SocketAddr, wanted: SocketAddr) {
        self.0.lock().remove(&(client, wanted));
    }

    /// Is it one?
    pub fn has(&self, client: SocketAddr, wanted: SocketAddr) -> bool {
        self.0.lock().contains(&(client, wanted))
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one worker, read by anybody.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The same, added up.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            fn add_to(&self, sum: &mut Counts) {
                $(sum.$name += self.$name.load(Relaxed);)*
            }
        }
    };
}

counters! {
    /// Captured connections accepted.
    accepted_out,
    /// Inbound connections accepted.
    accepted_in,
    /// Connections that the home worker gave to another.
    handed_on,
    /// Connections being proxied now (a gauge).
    open,
    /// Closed on arrival: no capture record.
    record_lost,
    /// Closed on arrival: the workload's budget of connections.
    budget_connections,
    /// Cut: the workload's budget of buffered bytes.
    budget_bytes,
    /// Closed on arrival: no service and no endpoint known for its record.
    no_destination,
    /// Refused on arrival: the agent is short of descriptors or memory.
    overloaded,
    /// `accept` failed for lack of descriptors or memory.
    accept_failed,
    /// Upstream connections opened.
    upstream_opened,
    /// Requests sent on an upstream connection that an earlier one had left.
    upstream_reused,
    /// Upstream connections that could not be opened.
    upstream_failed,
    /// Upstream connections waiting in the pool (a gauge).
    upstream_idle,
    /// Requests sent again: another endpoint after a failed connect, a reused connection that had closed, or as a
    /// route asks for it.
    retried,
    /// Second requests that were sent because the first was not answered in time.
    hedged,
    /// Of those, whose answer came first.
    hedges_won,
    /// Copies of requests that were sent.
    mirrored,
    /// That were not: too many were under way, the body was, or there was no endpoint.
    mirror_skipped,
    /// That were sent, and not answered.
    mirror_failed,
    /// HTTP requests begun; ids are made of it.
    requests,
    /// Resets passed on from one side to the other.
    resets,
    /// Connections cut by the agent: their workload left, or the drain's deadline passed.
    cut,
    /// Connections ended by a bug in the agent.
    panics,
    /// Tokens of requests that were checked and found good.
    tokens_checked,
    /// That were known to be good.
    tokens_known,
    /// That were refused.
    tokens_refused,
    /// Connections to ports that declare nothing, by what they were taken for: HTTP/1.
    detected_http1,
    /// HTTP/2.
    detected_http2,
    /// TLS.
    detected_tls,
    /// Their client began with anything else.
    detected_opaque,
    /// Their server spoke first.
    detected_server_first,
    /// Nobody said anything in time.
    detected_silent,
    /// Nothing was waited for: the same workload's last connection there had a silent client.
    detected_remembered,
    /// Questions to resolvers that the mesh answered.
    dns_answered,
    /// That were passed on and answered; over TCP: passed on.
    dns_forwarded,
    /// That got no answer, or that the mesh could not answer yet.
    dns_failed,
    /// Refused: too many of the workload's wait.
    dns_refused,
    /// Answers of external authorisation: let in.
    ext_authz_allowed,
    /// Refused.
    ext_authz_denied,
    /// No answer: refused.
    ext_authz_failed,
    /// No answer: let in.
    ext_authz_unasked,
    /// TLS with what is outside of the mesh that came up.
    origin_ok,
    /// And did not: the certificate is of no authority that is trusted.
    origin_unknown_ca,
    /// Its time is over, or has not come.
    origin_expired,
    /// It is for others.
    origin_wrong_name,
    /// Something else is wrong with it.
    origin_bad_certificate,
    /// The other end has no TLS, or none that is spoken here, or broke off.
    origin_failed,
    /// It took too long.
    origin_timeout,
}

/// Everything, of all workers.
#[derive(Clone, Debug, Default)]
pub struct ProxyStats {
    /// Connection counters.
    pub counts: Counts,
    /// Requests by key, in no order.
    pub requests: Vec<(RequestKey, Series)>,
    /// Requests whose key found no room.
    pub overflow: Series,
    /// Tunnels.
    pub tunnels: TunnelCounts,
    /// What policies that audit have matched, by their names.
    pub audits: HashMap<Arc<str>, u64>,
    /// Lines of the access log: written, dropped.
    pub lines: (u64, u64),
}

/// Adds workers up.
pub fn merge<'a>(workers: impl Iterator<Item = (&'a Counters, &'a Requests)>) -> ProxyStats {
    let mut stats = ProxyStats::default();
    let mut all = HashMap::new();
    for (counters, requests) in workers {
        counters.add_to(&mut stats.counts);
        requests.merge_into(&mut all, &mut stats.overflow);
    }
    stats.requests = all.into_iter().collect();
    stats
}

/// One more.
pub fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
