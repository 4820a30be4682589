//! When a request is tried again, as a route asks for it, and how long it waits before.
//!
//! What we would answer counts as its status: a reset before the response is 502, a try that took too long 504.
//!
//! Invariants: pure; no more than a fifth of the requests in flight are second tries ([`admits`]), so that retries
//! cannot multiply an overload.
//! Not here: other endpoints after a failed connect, and the one repetition on a stale connection, which nobody has to
//! ask for.

use std::time::Duration;

use crate::route::Retry;

/// Retries that are allowed however few requests there are (as Envoy's and Linkerd's budgets).
const FEW: u32 = 3;
/// Of so many requests one may be a retry.
const SHARE: u32 = 5;
/// The wait between tries where the route names none.
const STEP: Duration = Duration::from_millis(25);
/// Longest wait where the route names none.
const MOST: Duration = Duration::from_millis(250);

/// Is a response of this status tried again?
pub fn wanted(retry: &Retry, tried: u8, status: u16) -> bool {
    tried < retry.attempts && retry.codes.contains(&status)
}

/// May one more request be a retry, where so many are in flight and so many of them are retries?
pub fn admits(active: u32, retrying: u32) -> bool {
    retrying < (active / SHARE).max(FEW)
}

/// How long to wait before try number `tried` + 1 (from 1 on): the route's least and up to (2ⁿ − 1) steps more.
/// `random` is uniform over all values.
pub fn wait(retry: &Retry, tried: u8, random: u64) -> Duration {
    let own = !retry.backoff.is_zero();
    let step = if own { retry.backoff } else { STEP };
    let spread = (step * ((1 << tried.min(10)) - 1)).min(if own { step * 10 } else { MOST });
    let part = (u128::from(random) * spread.as_nanos()) >> 64;
    retry.backoff + Duration::from_nanos(part as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry(backoff_ms: u64) -> Retry {
        Retry { codes: [503].into(), attempts: 2, backoff: Duration::from_millis(backoff_ms) }
    }

    #[test]
    fn what_the_route_names_is_tried_as_often_as_it_says() {
        assert!(wanted(&retry(0), 0, 503) && wanted(&retry(0), 1, 503));
        assert!(!wanted(&retry(0), 2, 503) && !wanted(&retry(0), 0, 500));
    }

    #[test]
    fn retries_stay_a_share_of_what_is_in_flight() {
        assert!(admits(1, 2) && !admits(1, 3));
        assert!(admits(100, 19) && !admits(100, 20));
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let most = |backoff, tried| wait(&retry(backoff), tried, u64::MAX).as_millis();
        assert_eq!([most(0, 1), most(0, 2), most(0, 9)], [24, 74, 249]);
        assert_eq!([most(100, 1), most(100, 9)], [199, 1099]);
        assert_eq!(wait(&retry(100), 3, 0), Duration::from_millis(100));
        assert_eq!(wait(&retry(0), 3, 0), Duration::ZERO);
    }
}
