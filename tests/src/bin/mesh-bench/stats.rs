//! Small statistics: spread of a series, and pairs in ABBA order with a 95 % interval.
//!
//! A machine drifts while a bench runs. Rounds of A B B A cancel a drift that is linear in time. What else
//! the machine does falls on single rounds, and hard: so the middle of the rounds counts and not their mean,
//! with the interval of the sign test, which assumes no distribution.

use serde_json::{Value, json};

/// One round: peer, ours, ours, peer.
pub type Round = [f64; 4];

/// What rounds of pairs came to.
pub struct Pairs {
    /// Ours, every leg.
    pub ours: Vec<f64>,
    /// The peer's, every leg.
    pub peer: Vec<f64>,
    /// Ours ÷ peer (median over the rounds).
    pub ratio: f64,
    /// Its 95 % interval.
    pub ratio95: [f64; 2],
    /// Ours − peer (median over the rounds).
    pub difference: f64,
    /// Its 95 % interval.
    pub difference95: [f64; 2],
}

/// Runs `rounds` rounds of `leg(ours?)`.
pub fn abba(rounds: usize, mut leg: impl FnMut(bool) -> anyhow::Result<f64>) -> anyhow::Result<Pairs> {
    // Both warm: caches, ARP, open files.
    leg(false)?;
    leg(true)?;
    let mut all: Vec<Round> = Vec::new();
    for _ in 0..rounds {
        all.push([leg(false)?, leg(true)?, leg(true)?, leg(false)?]);
    }
    Ok(pairs(&all))
}

fn pairs(rounds: &[Round]) -> Pairs {
    let logs: Vec<f64> = rounds.iter().map(|[a, b, c, d]| ((b * c) / (a * d)).ln() / 2.0).collect();
    let differences: Vec<f64> =
        rounds.iter().map(|[a, b, c, d]| f64::midpoint(*b, *c) - f64::midpoint(*a, *d)).collect();
    let (log, logs95) = median95(logs);
    let (difference, difference95) = median95(differences);
    Pairs {
        ours: rounds.iter().flat_map(|[_, b, c, _]| [*b, *c]).collect(),
        peer: rounds.iter().flat_map(|[a, _, _, d]| [*a, *d]).collect(),
        ratio: log.exp(),
        ratio95: logs95.map(f64::exp),
        difference,
        difference95,
    }
}

/// Median, and its interval at 95 % or more: from the j-th smallest value to the j-th largest, where j is the
/// largest for which fewer than j of n fair coins show heads in at most 2.5 % of cases.
fn median95(mut values: Vec<f64>) -> (f64, [f64; 2]) {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let median = f64::midpoint(values[(n - 1) / 2], values[n / 2]);
    // P(exactly i heads), and of at most i, beginning with i = 0.
    let mut exactly = 0.5f64.powi(n as i32);
    let (mut at_most, mut j) = (exactly, 0);
    while at_most <= 0.025 {
        j += 1;
        exactly *= (n - j + 1) as f64 / j as f64;
        at_most += exactly;
    }
    match j.checked_sub(1) {
        Some(at) => (median, [values[at], values[n - 1 - at]]),
        None => (median, [f64::NEG_INFINITY, f64::INFINITY]),
    }
}

/// `{"min", "median", "max"}`.
pub fn spread(values: &[f64]) -> Value {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |part: f64| sorted.get(((sorted.len() as f64 - 1.0) * part).round() as usize).copied();
    json!({"min": at(0.0), "median": at(0.5), "max": at(1.0)})
}

/// The value at `percent` of `values`.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::{median95, pairs, percentile};

    /// Indices from tables of the sign test: n = 6, 12, 60.
    #[test]
    fn the_interval_of_the_median_is_that_of_the_sign_test() {
        for (n, lower) in [(6, 1.0), (12, 3.0), (60, 22.0)] {
            let (median, [low, high]) = median95((1..=n).map(f64::from).collect());
            let middle = f64::midpoint(f64::from(n), 1.0);
            assert!((median - middle).abs() < 1e-9 && (low - lower).abs() < 1e-9, "{n}: {low} {median}");
            assert!((high - (f64::from(n) + 1.0 - lower)).abs() < 1e-9, "{n}: {high}");
        }
        assert!(median95(vec![1.0; 5]).1[0].is_infinite(), "five rounds say nothing");
    }

    #[test]
    fn a_linear_drift_cancels() {
        // Ours is exactly as the peer; everything gets slower by one a leg.
        let rounds: Vec<_> =
            (0..8).map(|r| [0.0, 1.0, 2.0, 3.0].map(|leg| 1000.0 - 4.0 * f64::from(r) - leg)).collect();
        let pairs = pairs(&rounds);
        assert!((pairs.ratio - 1.0).abs() < 1e-5 && pairs.difference.abs() < 1e-9);
        assert!(pairs.ratio95[0] > 0.999);
    }

    #[test]
    fn percentiles_name_a_value_that_was_there() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!((percentile(&values, 99.0) - 99.0).abs() < 1e-9);
        assert!((percentile(&[7.0], 99.0) - 7.0).abs() < 1e-9);
    }
}
