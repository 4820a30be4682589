//! Which endpoint is left out because of what it answers: too many failures in a row, or far fewer successes than the
//! others have.
//!
//! For how long, how many at most, and that one of two always may be: the rules of connections that fail, which the kernel
//! shares (`mesh_common::pick`).

use std::time::Duration;

use super::answer::Answer;

/// What a policy says. 0: does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outliers {
    /// Failures of any kind in a row.
    pub bad: u32,
    /// Failures as of a gateway in a row.
    pub gateway: u32,
    /// Successes against those of others.
    pub rate: Option<Rates>,
    /// The first ejection.
    pub base: Duration,
}

/// How successes are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Between two comparisons.
    pub interval: Duration,
    /// Endpoints that are compared, at least.
    pub hosts: u32,
    /// Requests to each of them within the interval, at least.
    pub requests: u32,
    /// Standard deviations below the mean, thousandths.
    pub factor: u32,
}

/// What is known of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Changes with each ejection: what was sent before says nothing of the time after.
    pub epoch: u32,
    bad: u32,
    gateway: u32,
    /// Ejections that make the next one longer, and when the last was over.
    times: u32,
    back: u64,
    good: u32,
    all: u32,
}

impl Record {
    /// An answer to what was sent in `epoch`; `true`: it is to be ejected.
    pub fn note(&mut self, rules: &Outliers, epoch: u32, answer: Answer) -> bool {
        if epoch != self.epoch || answer == Answer::Nothing {
            return false;
        }
        let count = |row: u32, counts: bool| if counts { row.saturating_add(1) } else { 0 };
        self.bad = count(self.bad, answer != Answer::Good);
        self.gateway = count(self.gateway, answer == Answer::Gateway);
        self.all = self.all.saturating_add(1);
        self.good = self.good.saturating_add(u32::from(answer == Answer::Good));
        rules.bad > 0 && self.bad >= rules.bad || rules.gateway > 0 && self.gateway >= rules.gateway
    }

    /// Ejections before the one that is to come, as far as they make it longer: one is forgiven for each time of the base
    /// that it was not ejected.
    pub fn before(&self, rules: &Outliers, now: u64) -> u32 {
        let base = u64::try_from(rules.base.as_nanos()).unwrap_or(u64::MAX).max(1);
        let forgiven = now.saturating_sub(self.back) / base;
        self.times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// It was ejected until then.
    pub fn ejected(&mut self, rules: &Outliers, now: u64, until: u64) {
        let times = self.before(rules, now).saturating_add(1);
        *self = Self { epoch: self.epoch.wrapping_add(1), times, back: until, ..Self::default() };
    }

    /// Successes and requests of the interval that ends now.
    pub fn interval(&mut self) -> (u32, u32) {
        let counted = (self.good, self.all);
        (self.good, self.all) = (0, 0);
        counted
    }
}

/// Which of them succeed much less often than all do: `(successes, requests)` each.
pub fn outliers(rules: &Rates, of: &[(u32, u32)]) -> Vec<usize> {
    let rate = |&(good, all): &(u32, u32)| f64::from(good) / f64::from(all);
    let counts = |&(_, all): &(u32, u32)| all > 0 && all >= rules.requests;
    let rates: Vec<f64> = of.iter().filter(|one| counts(one)).map(rate).collect();
    if rates.is_empty() || rates.len() < rules.hosts as usize {
        return Vec::new();
    }
    let hosts = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / hosts;
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / hosts;
    let least = mean - variance.sqrt() * f64::from(rules.factor) / 1000.0;
    let of = of.iter().enumerate();
    of.filter(|(_, one)| counts(one) && rate(one) < least).map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rules() -> Outliers {
        Outliers { bad: 3, gateway: 2, rate: None, base: Duration::from_secs(30) }
    }

    #[test]
    fn rows_of_each_kind_count_and_a_success_ends_both() {
        use Answer::{Bad, Gateway, Good, Nothing};
        #[track_caller]
        fn check(answers: &[Answer], ejects: bool) {
            let mut record = Record::default();
            let said: Vec<bool> = answers.iter().map(|answer| record.note(&rules(), 0, *answer)).collect();
            assert_eq!(said.last(), Some(&ejects), "{answers:?}");
        }
        check(&[Bad, Bad, Bad], true);
        check(&[Bad, Bad], false);
        check(&[Gateway, Gateway], true);
        check(&[Gateway, Bad, Gateway], true);
        check(&[Gateway, Good, Gateway], false);
        check(&[Bad, Bad, Good, Bad, Bad], false);
        check(&[Bad, Bad, Nothing], false);
        check(&[Bad, Nothing, Bad, Bad], true);
    }

    #[test]
    fn what_was_sent_before_an_ejection_does_not_cause_the_next() {
        let mut record = Record::default();
        record.ejected(&rules(), 0, 30 * SECOND);
        assert!((0..9).all(|_| !record.note(&rules(), 0, Answer::Gateway)));
        assert!(!record.note(&rules(), 1, Answer::Gateway) && record.note(&rules(), 1, Answer::Gateway));
    }

    #[test]
    fn ejections_grow_longer_and_are_forgiven_in_time() {
        let mut record = Record::default();
        record.ejected(&rules(), 0, 30 * SECOND);
        assert_eq!(record.before(&rules(), 31 * SECOND), 1);
        record.ejected(&rules(), 31 * SECOND, 91 * SECOND);
        assert_eq!(record.before(&rules(), 91 * SECOND), 2);
        assert_eq!(record.before(&rules(), 122 * SECOND), 1);
        assert_eq!(record.before(&rules(), 200 * SECOND), 0);
    }

    #[test]
    fn one_that_fails_where_others_do_not_is_found() {
        let rates = Rates { interval: Duration::from_secs(10), hosts: 5, requests: 100, factor: 1900 };
        let fine = (100, 100);
        let all = [fine, fine, fine, fine, fine, (60, 100)];
        assert_eq!(outliers(&rates, &all), [5]);
        assert_eq!(outliers(&rates, &all[2..]), [] as [usize; 0], "too few hosts");
        let mut few = all;
        few[5] = (6, 10);
        assert_eq!(outliers(&rates, &few), [] as [usize; 0], "too few requests");
        assert_eq!(outliers(&rates, &[(50, 100); 9]), [] as [usize; 0], "all alike");
        assert_eq!(outliers(&rates, &[]), [] as [usize; 0]);
    }
}
