//! What a service's policy asks for of requests, and the decisions that follow from it.
//!
//! ```text
//! route ─▶ fault ─▶ admission (limits, queue) ─▶ breaker ─▶ endpoint (hedge) ─▶ answer ─▶ { breaker, outlier, latency }
//!                                                            at the other end: rate
//! ```
//!
//! Invariants: pure; times are nanoseconds of one clock that never goes back, given as arguments. What is counted is kept
//! by the agent, for the node as a whole.
//! Not here: connections (their limits and ejections are the kernel's), retries ([`crate::retry`]).

pub mod admission;
pub mod answer;
pub mod breaker;
pub mod fault;
pub mod hedge;
pub mod latency;
pub mod outlier;
pub mod overload;
pub mod rate;
pub mod sticky;

use admission::Limits;
use breaker::Breaking;
use fault::Fault;
use hedge::Hedge;
use outlier::Outliers;
use rate::Rate;
use sticky::Sticky;

/// All of it, of one service port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resilience {
    /// How many requests there may be.
    pub limits: Limits,
    /// When an endpoint is left out because of its answers; `None`: never.
    pub outliers: Option<Outliers>,
    /// When nothing is sent for a while; `None`: never.
    pub breaking: Option<Breaking>,
    /// How often each workload behind it may be asked.
    pub rates: Box<[Rate]>,
    /// What goes wrong on purpose; `None`: nothing.
    pub fault: Option<Fault>,
    /// Endpoints are chosen by the requests that they have, or how soon they answer.
    pub weighs: bool,
    /// When a slow request is sent a second time; `None`: never.
    pub hedge: Option<Hedge>,
    /// What keeps a client at one endpoint; `None`: nothing.
    pub sticky: Option<Sticky>,
}

impl Resilience {
    /// Is each request followed to its end by who sends it?
    pub fn follows(&self) -> bool {
        self.limits != Limits::default()
            || self.outliers.is_some()
            || self.breaking.is_some()
            || self.weighs
            || self.hedge.is_some()
    }

    /// Are there endpoints that may not be sent to for now, though nobody has ejected them?
    pub fn chooses(&self) -> bool {
        self.limits.per_endpoint > 0 || self.breaking.as_ref().is_some_and(|breaking| !breaking.service)
    }
}
