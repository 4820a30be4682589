//! When a request that is slow to be answered is sent to a second endpoint as well, and how many may be.
//!
//! After a time that the policy names, or as long as a percentile of the service's latest answers have taken: those
//! are counted in buckets an eighth of a doubling wide, halved when [`MANY`] are counted, so that old ones fade.
//!
//! Invariants: pure; before [`FEW`] answers are known nothing is hedged by percentile; of the requests in flight no more
//! than the policy's share are second ones, and one at least may be ([`admits`]).
//! Not here: which requests may be sent twice, and whose answer counts (the agent's path).

use std::time::Duration;

/// Buckets of answers' times: up to 2³² microseconds.
pub const BUCKETS: usize = 32 * PARTS;
/// Buckets of one doubling.
const PARTS: usize = 8;
/// Answers before anything is said of a percentile.
pub const FEW: u32 = 50;
/// Answers at which all buckets are halved.
pub const MANY: u32 = 2000;

/// What the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// When.
    pub when: When,
    /// Of a hundred requests in flight.
    pub max_percent: u32,
}

/// When a second one is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After this time.
    After(Duration),
    /// After the time within which so many of a hundred are answered.
    Percentile(u32),
}

/// May one more second request be sent, where so many requests are in flight and so many of them are second ones?
pub fn admits(hedge: &Hedge, active: u32, hedging: u32) -> bool {
    let share = u64::from(active) * u64::from(hedge.max_percent) / 100;
    u64::from(hedging) < share.max(1)
}

/// Where an answer's time is counted.
pub fn bucket(took: Duration) -> usize {
    let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
    let doubling = us.ilog2();
    // The three bits below the highest.
    let part = if doubling >= 3 { us >> (doubling - 3) & 7 } else { us << (3 - doubling) & 7 };
    doubling as usize * PARTS + part as usize
}

/// The longest time that is counted there.
fn most(bucket: usize) -> Duration {
    let (doubling, part) = (bucket / PARTS, bucket % PARTS);
    Duration::from_micros((((PARTS + part + 1) as u64) << doubling).div_ceil(PARTS as u64))
}

/// Time within which `percent` of a hundred counted answers have come; `None`: too few are known.
pub fn percentile(counted: impl Iterator<Item = u32> + Clone, percent: u32) -> Option<Duration> {
    let all: u64 = counted.clone().map(u64::from).sum();
    if all < u64::from(FEW) {
        return None;
    }
    let wanted = (all * u64::from(percent)).div_ceil(100);
    let mut seen = 0;
    let mut sums = counted.map(|n| {
        seen += u64::from(n);
        seen
    });
    sums.position(|seen| seen >= wanted).map(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(took: &[u64]) -> Vec<u32> {
        let mut counted = vec![0; BUCKETS];
        for us in took {
            counted[bucket(Duration::from_micros(*us))] += 1;
        }
        counted
    }

    #[test]
    fn nothing_is_said_of_a_percentile_before_enough_is_known() {
        let few = of(&[1000; FEW as usize - 1]);
        assert_eq!(percentile(few.into_iter(), 90), None);
        let enough = of(&[1000; FEW as usize]);
        assert!(percentile(enough.into_iter(), 90).is_some());
    }

    #[test]
    fn one_may_always_be_hedged_and_then_a_share() {
        let hedge = Hedge { when: When::Percentile(95), max_percent: 10 };
        assert!(admits(&hedge, 1, 0) && !admits(&hedge, 1, 1));
        assert!(admits(&hedge, 100, 9) && !admits(&hedge, 100, 10));
        assert!(!admits(&hedge, u32::MAX, u32::MAX));
    }

    proptest! {
        #[test]
        fn a_percentile_is_the_sorted_ones_within_an_eighth(
            mut took in proptest::collection::vec(1u64..3_000_000_000, FEW as usize..400),
            percent in 50u32..100,
        ) {
            let found = percentile(of(&took).into_iter(), percent).unwrap().as_micros() as u64;
            took.sort_unstable();
            let at = (took.len() * percent as usize).div_ceil(100) - 1;
            prop_assert!(found >= took[at], "{found} {}", took[at]);
            prop_assert!(found <= took[at] + took[at] / 8 + 1, "{found} {}", took[at]);
        }

        #[test]
        fn never_more_than_the_share_are_second_ones(max in 1u32..=100, active in 0u32..100_000) {
            let hedge = Hedge { when: When::Percentile(50), max_percent: max };
            let mut hedging = 0;
            while admits(&hedge, active, hedging) { hedging += 1 }
            prop_assert!(hedging == 1 || u64::from(hedging) * 100 <= u64::from(active) * u64::from(max));
        }
    }
}
