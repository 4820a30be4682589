//! How often something may be asked for: the generic cell rate algorithm, one number a bucket.
//!
//! The number is the time at which the bucket would be empty again; a request moves it by the time that one request is
//! worth, and is refused where that would put it further ahead than the burst allows.
//!
//! Invariant: in any time t at most `burst + t / every` requests are let through.

use std::time::Duration;

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds that one request is worth; at least 1.
    pub every: u64,
    /// At once, after a rest; at least 1.
    pub burst: u32,
    /// Who shares a bucket.
    pub by: By,
}

/// Who shares a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// Everybody.
    All,
    /// Who has the same identity, else the same address.
    Source,
    /// Who says the same in this header; who does not have it shares one.
    Header(Box<str>),
}

impl Rate {
    /// So many in this time.
    pub fn new(requests: u32, per: Duration, burst: u32, by: By) -> Self {
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        Self { every: (per / u64::from(requests.max(1))).max(1), burst: burst.max(1), by }
    }

    /// One more at `now`. `empty`: when the bucket is empty, 0 for a new one. `Ok`: that from now on; `Err`: nanoseconds
    /// until the next is let through.
    pub fn admit(&self, empty: u64, now: u64) -> Result<u64, u64> {
        let next = empty.max(now).saturating_add(self.every);
        let most = now.saturating_add(self.every.saturating_mul(self.burst.into()));
        if next > most { Err(next - most) } else { Ok(next) }
    }

    /// Nobody needs to remember a bucket that is empty.
    pub const fn is_rested(empty: u64, now: u64) -> bool {
        empty <= now
    }
}

/// Whole seconds for `Retry-After`, at least one.
pub const fn retry_after(nanos: u64) -> u64 {
    let seconds = nanos.div_ceil(1_000_000_000);
    if seconds == 0 { 1 } else { seconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let rate = Rate::new(10, Duration::from_secs(1), 3, By::All);
        let mut empty = 0;
        for _ in 0..3 {
            empty = rate.admit(empty, SECOND).unwrap();
        }
        assert_eq!(rate.admit(empty, SECOND), Err(SECOND / 10));
        empty = rate.admit(empty, SECOND + SECOND / 10).unwrap();
        assert_eq!(rate.admit(empty, SECOND + SECOND / 10), Err(SECOND / 10));
        assert!(Rate::is_rested(empty, 2 * SECOND) && !Rate::is_rested(empty, SECOND));
        assert_eq!(
            [retry_after(0), retry_after(1), retry_after(SECOND), retry_after(SECOND + 1)],
            [1, 1, 1, 2]
        );
    }

    proptest! {
        #[test]
        fn no_more_pass_than_the_rate_and_its_burst(
            requests in 1u32..50, burst in 1u32..20, waits in prop::collection::vec(0u64..SECOND / 4, 1..300),
        ) {
            let rate = Rate::new(requests, Duration::from_secs(1), burst, By::All);
            let (mut empty, mut now, mut passed) = (0, SECOND, 0u64);
            for wait in waits {
                now += wait;
                if let Ok(next) = rate.admit(empty, now) {
                    (empty, passed) = (next, passed + 1);
                }
                prop_assert!(passed <= u64::from(burst) + (now - SECOND) / rate.every + 1);
            }
        }

        #[test]
        fn who_waits_as_long_as_told_is_let_through(now in any::<u32>(), ahead in any::<u32>(), burst in 1u32..9) {
            let rate = Rate::new(7, Duration::from_secs(1), burst, By::All);
            let (now, empty) = (u64::from(now), u64::from(now) + u64::from(ahead));
            if let Err(wait) = rate.admit(empty, now) {
                prop_assert!(rate.admit(empty, now + wait).is_ok());
                prop_assert!(rate.admit(empty, now + wait - 1).is_err());
            }
        }
    }
}
