//! How soon an endpoint is expected to answer: a moving average that rises at once and falls slowly.
//!
//! Invariants: an answer that is slower than expected is believed at once; one that is faster, by how long ago the last one
//! was. A failure is no fast answer: it counts as a slow one, so that it attracts nobody.
//! One word holds it all, so that many workers can keep it without a lock.

use std::time::Duration;

use super::answer::Answer;

/// How long an answer counts.
const DECAY_MS: f64 = 10_000.0;
/// What is expected of an endpoint that was never asked, microseconds.
const FIRST: u32 = 30_000;
/// What a failure counts as, microseconds.
const FAILURE: u32 = 5_000_000;

/// What is expected, as one word: microseconds, and the milliseconds of the clock at which that was so; 0: nothing yet.
pub type Expected = u64;

const fn pack(us: u32, at_ms: u32) -> Expected {
    (us as u64) << 32 | at_ms as u64
}

fn weight(at_ms: u32, now: u64) -> f64 {
    let since = (millis(now)).wrapping_sub(at_ms);
    (-f64::from(since) / DECAY_MS).exp()
}

/// Wraps in 49 days: differences are what counts.
const fn millis(now: u64) -> u32 {
    (now / 1_000_000) as u32
}

/// What is expected after an answer that took `took` at `now`.
pub fn after(expected: Expected, answer: Answer, took: Duration, now: u64) -> Expected {
    let measured = match answer {
        Answer::Nothing => return expected,
        Answer::Good => u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1),
        Answer::Bad | Answer::Gateway => FAILURE,
    };
    let (us, at) = ((expected >> 32) as u32, expected as u32);
    if measured >= us {
        return pack(measured, millis(now));
    }
    let w = weight(at, now);
    let mixed = f64::from(us) * w + f64::from(measured) * (1.0 - w);
    pack((mixed as u32).max(1), millis(now))
}

/// What one more request would cost where so many are in flight. Higher is worse.
pub fn cost(expected: Expected, requests: u32, now: u64) -> u64 {
    let us = if expected == 0 {
        FIRST
    } else {
        // What nobody has asked for a while is believed to be better than it was.
        let us = f64::from((expected >> 32) as u32) * weight(expected as u32, now);
        (us as u32).max(1)
    };
    u64::from(us) * (u64::from(requests) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn us(expected: Expected) -> u64 {
        expected >> 32
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let took = Duration::from_millis;
        let slow = after(0, Answer::Good, took(100), 1000 * MS);
        assert_eq!(us(slow), 100_000);
        let soon = after(slow, Answer::Good, took(10), 1001 * MS);
        assert!((99_000..100_000).contains(&us(soon)), "{}", us(soon));
        let later = after(slow, Answer::Good, took(10), 11_000 * MS);
        assert!((42_000..44_000).contains(&us(later)), "{}", us(later));
        assert_eq!(us(after(later, Answer::Good, took(200), 11_000 * MS)), 200_000);
    }

    #[test]
    fn a_fast_failure_attracts_nobody() {
        let good = after(0, Answer::Good, Duration::from_millis(50), 0);
        let bad = after(good, Answer::Bad, Duration::from_micros(1), 0);
        assert!(cost(bad, 0, 0) > cost(good, 20, 0));
        assert_eq!(after(good, Answer::Nothing, Duration::ZERO, 9), good);
    }

    #[test]
    fn who_was_bad_is_asked_again_in_time_and_who_is_new_soon() {
        let bad = after(0, Answer::Gateway, Duration::ZERO, 0);
        assert!(cost(bad, 0, 0) > cost(0, 99, 0));
        assert!(cost(bad, 0, 120_000 * MS) < cost(0, 0, 0));
        assert_eq!(cost(0, 1, 5), 2 * cost(0, 0, 5));
    }
}
