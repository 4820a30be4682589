//! A circuit breaker: after too many failures nothing is sent for a while, then one request probes.
//!
//! ```text
//! closed ──too many failures──▶ open ──its time is over──▶ probing ──answered──▶ closed
//!                                ▲                            │
//!                                └──────────failed────────────┘
//! ```
//!
//! Invariants: while open nothing is admitted; while probing, one request. A result from before a change of state carries
//! an old epoch and is ignored. A probe that never ends expires, and the next caller probes.

use std::time::Duration;

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaking {
    /// Of the service as a whole; else of each endpoint.
    pub service: bool,
    /// Failures in a row that open it.
    pub in_a_row: u32,
    /// Failures of a hundred within [`WINDOW`] that open it; 0: none do.
    pub percent: u32,
    /// Requests within it before that counts.
    pub least: u32,
    /// For how long the first time; twice as long each time after that.
    pub open_for: Duration,
    /// At most for so long.
    pub most: Duration,
}

/// Nanoseconds that a failure counts towards the ratio.
pub const WINDOW: u64 = 10_000_000_000;
/// Parts of them.
const BUCKETS: usize = 10;

/// The right to send one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    epoch: u32,
}

/// Nothing is sent before then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// When one is tried again.
    pub until: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: u64,
    },
    Probing {
        until: u64,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Which part of time it counts.
    number: u64,
    failed: u32,
    all: u32,
}

/// One of them.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    state: State,
    epoch: u32,
    in_a_row: u32,
    /// Openings since it last was closed.
    openings: u32,
    /// Ever.
    opened: u64,
    window: [Bucket; BUCKETS],
}

impl Breaker {
    /// May a request be sent at `now`? It is one that [`Breaker::settle`] must hear of.
    pub fn admit(&mut self, rules: &Breaking, now: u64) -> Result<Pass, Open> {
        self.would_admit(now)?;
        if self.state != State::Closed {
            self.enter(State::Probing { until: now + nanos(rules.open_for) });
        }
        Ok(Pass { epoch: self.epoch })
    }

    /// The same, and nothing changes.
    pub fn would_admit(&self, now: u64) -> Result<(), Open> {
        match self.state {
            State::Open { until } | State::Probing { until } if now < until => Err(Open { until }),
            _ => Ok(()),
        }
    }

    /// Is it anything but closed?
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// How often it has opened.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// How a request ended. `failed`: `None`: nobody knows. `random` is uniform over all values.
    pub fn settle(&mut self, rules: &Breaking, pass: Pass, failed: Option<bool>, now: u64, random: u64) {
        if pass.epoch != self.epoch {
            return;
        }
        match (self.state, failed) {
            // The probe says nothing: the next one may.
            (State::Probing { .. }, None) => self.enter(State::Open { until: now }),
            (State::Probing { .. }, Some(true)) => self.open(rules, now, random),
            (State::Probing { .. }, Some(false)) => {
                self.openings = 0;
                self.in_a_row = 0;
                self.window = Default::default();
                self.enter(State::Closed);
            }
            (State::Closed, Some(failed)) => {
                self.count(failed, now);
                if failed && self.is_too_much(rules, now) {
                    self.open(rules, now, random);
                }
            }
            (State::Closed, None) | (State::Open { .. }, _) => {}
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.epoch = self.epoch.wrapping_add(1);
    }

    fn open(&mut self, rules: &Breaking, now: u64, random: u64) {
        let most = nanos(rules.most);
        let time = nanos(rules.open_for).saturating_mul(1 << self.openings.min(30)).min(most);
        // Up to a tenth longer, so that many breakers do not probe at once.
        let jitter = (u128::from(random) * u128::from(time / 10)) >> 64;
        self.openings = self.openings.saturating_add(1);
        self.opened += 1;
        self.enter(State::Open { until: now.saturating_add(time + jitter as u64) });
    }

    fn count(&mut self, failed: bool, now: u64) {
        self.in_a_row = if failed { self.in_a_row.saturating_add(1) } else { 0 };
        let number = now / (WINDOW / BUCKETS as u64);
        let bucket = &mut self.window[number as usize % BUCKETS];
        if bucket.number != number {
            *bucket = Bucket { number, ..Bucket::default() };
        }
        bucket.all = bucket.all.saturating_add(1);
        bucket.failed = bucket.failed.saturating_add(u32::from(failed));
    }

    fn is_too_much(&self, rules: &Breaking, now: u64) -> bool {
        if rules.in_a_row > 0 && self.in_a_row >= rules.in_a_row {
            return true;
        }
        let oldest = (now / (WINDOW / BUCKETS as u64)).saturating_sub(BUCKETS as u64 - 1);
        let current = || self.window.iter().filter(|bucket| bucket.number >= oldest);
        let all: u64 = current().map(|bucket| u64::from(bucket.all)).sum();
        let failed: u64 = current().map(|bucket| u64::from(bucket.failed)).sum();
        rules.percent > 0 && all >= u64::from(rules.least) && failed * 100 >= all * u64::from(rules.percent)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn rules() -> Breaking {
        Breaking {
            service: false,
            in_a_row: 3,
            percent: 50,
            least: 20,
            open_for: Duration::from_secs(1),
            most: Duration::from_secs(60),
        }
    }

    fn fail(breaker: &mut Breaker, times: u32, now: u64) {
        for _ in 0..times {
            let pass = breaker.admit(&rules(), now).unwrap();
            breaker.settle(&rules(), pass, Some(true), now, 0);
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_probe_closes_it() {
        let mut breaker = Breaker::default();
        fail(&mut breaker, 2, 0);
        let pass = breaker.admit(&rules(), 0).unwrap();
        breaker.settle(&rules(), pass, Some(false), 0, 0);
        fail(&mut breaker, 3, 0);
        assert_eq!(breaker.admit(&rules(), 0), Err(Open { until: SECOND }));
        let probe = breaker.admit(&rules(), SECOND).unwrap();
        assert!(breaker.admit(&rules(), SECOND).is_err(), "one probe");
        breaker.settle(&rules(), probe, Some(false), SECOND, 0);
        assert!(!breaker.is_open() && breaker.admit(&rules(), SECOND).is_ok());
        assert_eq!(breaker.opened(), 1);
    }

    #[test]
    fn it_stays_open_longer_each_time_and_not_for_ever() {
        let (mut breaker, mut now) = (Breaker::default(), 0);
        fail(&mut breaker, 3, now);
        for wanted in [1, 2, 4, 8, 16, 32, 60, 60] {
            let Err(open) = breaker.admit(&rules(), now) else { panic!("open") };
            assert_eq!(open.until - now, wanted * SECOND);
            now = open.until;
            let probe = breaker.admit(&rules(), now).unwrap();
            breaker.settle(&rules(), probe, Some(true), now, 0);
        }
    }

    #[test]
    fn a_ratio_opens_it_within_its_window_alone() {
        let rules = Breaking { in_a_row: 0, ..rules() };
        let mut breaker = Breaker::default();
        let ask = |breaker: &mut Breaker, failed, now| {
            let pass = breaker.admit(&rules, now).unwrap();
            breaker.settle(&rules, pass, Some(failed), now, 0);
        };
        for _ in 0..15 {
            ask(&mut breaker, true, 0);
        }
        for i in 0..40 {
            // Ten seconds later the first are forgotten.
            ask(&mut breaker, i % 3 == 0, WINDOW + SECOND);
        }
        assert!(!breaker.is_open());
        for _ in 0..14 {
            ask(&mut breaker, true, WINDOW + SECOND);
            if breaker.is_open() {
                return;
            }
        }
        panic!("half of them have failed");
    }

    #[test]
    fn late_results_and_lost_probes_do_no_harm() {
        let mut breaker = Breaker::default();
        let early = breaker.admit(&rules(), 0).unwrap();
        fail(&mut breaker, 3, 0);
        breaker.settle(&rules(), early, Some(false), 1, 0);
        assert!(breaker.admit(&rules(), 1).is_err(), "of another epoch");
        let lost = breaker.admit(&rules(), SECOND).unwrap();
        let next = breaker.admit(&rules(), 2 * SECOND).expect("the first probe has expired");
        breaker.settle(&rules(), lost, Some(false), 2 * SECOND, 0);
        assert!(breaker.is_open());
        breaker.settle(&rules(), next, None, 2 * SECOND, 0);
        assert!(
            breaker.admit(&rules(), 2 * SECOND).is_ok(),
            "nobody knows how it ended: the next one probes"
        );
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask,
        End(usize, Option<bool>),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Ask),
            (any::<usize>(), prop::option::weighted(0.9, any::<bool>()))
                .prop_map(|(i, how)| Step::End(i, how)),
            (0..SECOND).prop_map(Step::Pass),
        ]
    }

    proptest! {
        #[test]
        fn while_open_it_never_admits_beyond_its_probe(steps in prop::collection::vec(step(), 1..400)) {
            let (mut breaker, mut now) = (Breaker::default(), 0);
            let mut held: Vec<Pass> = Vec::new();
            for step in steps {
                match step {
                    Step::Pass(time) => now += time,
                    Step::End(i, how) if !held.is_empty() => {
                        let pass = held.swap_remove(i % held.len());
                        breaker.settle(&rules(), pass, how, now, i as u64);
                    }
                    Step::End(..) => {}
                    Step::Ask => {
                        let before = breaker.state;
                        let admitted = breaker.admit(&rules(), now);
                        match before {
                            State::Closed => prop_assert!(admitted.is_ok()),
                            State::Open { until } | State::Probing { until } => {
                                prop_assert_eq!(admitted.is_ok(), now >= until);
                            }
                        }
                        if let Ok(pass) = admitted {
                            if before != State::Closed {
                                // No other of its epoch is under way.
                                prop_assert!(held.iter().all(|other| other.epoch != pass.epoch));
                            }
                            held.push(pass);
                        }
                    }
                }
            }
        }
    }
}
