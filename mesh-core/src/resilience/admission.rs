//! How many requests are in flight to a service, and who waits for a turn.
//!
//! Invariants: never more in flight than may be; never more wait than may; who comes while others wait goes behind them.

use std::time::Duration;

use crate::error::ProxyError;

/// What a policy says. 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight from this node.
    pub requests: u32,
    /// To each endpoint.
    pub per_endpoint: u32,
    /// That wait; 0: none does.
    pub pending: u32,
    /// For how long.
    pub wait: Duration,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is sent.
    Now,
    /// It waits.
    Wait,
    /// It is refused.
    Refused(ProxyError),
}

impl Limits {
    /// Is there room for one more where so many are in flight?
    pub const fn has_room(&self, active: u32) -> bool {
        self.requests == 0 || active < self.requests
    }

    /// Is there room at an endpoint that has so many?
    pub const fn has_room_at(&self, active: u32) -> bool {
        self.per_endpoint == 0 || active < self.per_endpoint
    }

    /// What becomes of one more, where so many are in flight and so many wait.
    pub const fn admit(&self, active: u32, waiting: u32) -> Admission {
        if self.has_room(active) && (waiting == 0 || self.pending == 0) {
            return Admission::Now;
        }
        self.full(waiting)
    }

    /// What becomes of one for which there is no room, where so many wait.
    pub const fn full(&self, waiting: u32) -> Admission {
        if self.pending == 0 {
            Admission::Refused(ProxyError::LimitRequests)
        } else if waiting < self.pending {
            Admission::Wait
        } else {
            Admission::Refused(ProxyError::QueueFull)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: Limits = Limits { requests: 0, per_endpoint: 0, pending: 0, wait: Duration::ZERO };

    #[test]
    fn without_a_limit_everything_is_sent() {
        assert_eq!(NONE.admit(u32::MAX, 0), Admission::Now);
        assert!(NONE.has_room_at(u32::MAX));
    }

    #[test]
    fn without_a_queue_what_is_too_much_is_refused_as_such() {
        let limits = Limits { requests: 2, ..NONE };
        assert_eq!(limits.admit(1, 0), Admission::Now);
        assert_eq!(limits.admit(2, 0), Admission::Refused(ProxyError::LimitRequests));
    }

    proptest! {
        #[test]
        fn neither_bound_is_ever_passed(
            requests in 1u32..6, pending in 0u32..6, comes in prop::collection::vec(any::<bool>(), 1..200),
        ) {
            let limits = Limits { requests, pending, ..NONE };
            let (mut active, mut waiting) = (0, 0);
            for comes in comes {
                if comes {
                    match limits.admit(active, waiting) {
                        Admission::Now => {
                            prop_assert_eq!(waiting, 0, "nobody overtakes");
                            active += 1;
                        }
                        Admission::Wait => waiting += 1,
                        Admission::Refused(error) => {
                            prop_assert_eq!(active, requests);
                            let named = if pending == 0 { ProxyError::LimitRequests } else { ProxyError::QueueFull };
                            prop_assert_eq!(error, named);
                        }
                    }
                } else if active > 0 {
                    active -= 1;
                    if waiting > 0 {
                        (active, waiting) = (active + 1, waiting - 1);
                    }
                }
                prop_assert!(active <= requests && waiting <= pending);
                prop_assert!(waiting == 0 || active == requests, "nobody waits without a cause");
            }
        }
    }
}
