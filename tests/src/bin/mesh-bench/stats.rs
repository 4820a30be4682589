//! Small statistics: spread of a series, and pairs in ABBA order with a 95 % interval.
//!
//! A machine drifts while a bench runs. Rounds of A B B A cancel a drift that is linear in time; the
//! interval over the rounds says how far the rest may be trusted.

use serde_json::{Value, json};

/// Two-sided 95 % quantiles of Student's t for 1, 2, … degrees of freedom.
const T95: [f64; 19] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093,
];

/// One round: peer, ours, ours, peer.
pub type Round = [f64; 4];

/// What rounds of pairs came to.
pub struct Pairs {
    /// Ours, every leg.
    pub ours: Vec<f64>,
    /// The peer's, every leg.
    pub peer: Vec<f64>,
    /// Ours ÷ peer (geometric mean over the rounds).
    pub ratio: f64,
    /// Its 95 % interval.
    pub ratio95: [f64; 2],
    /// Ours − peer (mean over the rounds).
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
    let (log, log_half) = mean95(&logs);
    let (difference, half) = mean95(&differences);
    Pairs {
        ours: rounds.iter().flat_map(|[_, b, c, _]| [*b, *c]).collect(),
        peer: rounds.iter().flat_map(|[a, _, _, d]| [*a, *d]).collect(),
        ratio: log.exp(),
        ratio95: [(log - log_half).exp(), (log + log_half).exp()],
        difference,
        difference95: [difference - half, difference + half],
    }
}

/// Mean, and half the width of its 95 % interval.
fn mean95(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let Some(t) = values.len().checked_sub(2).map(|index| T95.get(index).copied().unwrap_or(1.96)) else {
        return (mean, f64::INFINITY);
    };
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, t * (variance / n).sqrt())
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
    use super::{pairs, percentile};

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
