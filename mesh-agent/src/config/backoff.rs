//! How long to wait before the next try: doubling from 100 ms to 5 s, with jitter so that the nodes of a
//! mesh do not come back in step.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(5);

/// Grows with each failure.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait before the next try, where `random` is uniform in 0..1: between half the step and the step.
    pub fn step(&mut self, random: f64) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LAST);
        step.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_a_bound_and_begins_again() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.step(0.0), Duration::from_millis(50));
        assert_eq!(backoff.step(1.0), Duration::from_millis(200));
        for _ in 0..20 {
            assert!(backoff.step(1.0) <= LAST);
        }
        assert_eq!(backoff.step(1.0), LAST);
        backoff.reset();
        assert_eq!(backoff.step(1.0), FIRST);
    }
}
