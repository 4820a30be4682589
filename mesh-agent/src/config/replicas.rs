//! Which replica of the control plane this node speaks to. Pure: `now` and randomness are arguments.
//!
//! `--control https://a:15012@zone-1,https://b:15012@zone-2` ──▶ **replicas** ──order──▶ connect
//!
//! The replica that is spoken to stays; else one of the node's own zone, drawn at random so that nodes spread, then one of
//! the others. Who has just failed comes last.
//!
//! Not here: connections (connect), when to connect again (xds, session).

use std::time::{Duration, Instant};

/// How long a replica that failed comes last.
const AVOID: Duration = Duration::from_secs(3);

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Host name or address.
    pub host: String,
    /// Port of the agents.
    pub port: u16,
    /// Its zone, if it was said.
    pub zone: String,
}

impl Replica {
    /// `HOST:PORT`.
    pub fn at(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// All of them, and which is spoken to.
#[derive(Debug)]
pub struct Replicas {
    all: Vec<Replica>,
    failed: Vec<Option<Instant>>,
    zone: String,
    current: Option<usize>,
}

impl Replicas {
    /// For a node of this zone.
    pub fn new(all: Vec<Replica>, zone: &str) -> Self {
        Self { failed: vec![None; all.len()], all, zone: zone.to_owned(), current: None }
    }

    /// One of them.
    pub fn get(&self, number: usize) -> Option<&Replica> {
        self.all.get(number)
    }

    /// In which order to try them; `random` is uniform in 0..1, anew at each call.
    pub fn order(&self, now: Instant, mut random: impl FnMut() -> f64) -> Vec<usize> {
        let mut keyed: Vec<_> = (0..self.all.len())
            .map(|number| {
                let failed = self.failed[number].is_some_and(|at| now.saturating_duration_since(at) < AVOID);
                let current = self.current == Some(number);
                let own = !self.zone.is_empty() && self.all[number].zone == self.zone;
                (failed, !current, !own, random(), number)
            })
            .collect();
        keyed.sort_by(|a, b| (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2)).then(a.3.total_cmp(&b.3)));
        keyed.into_iter().map(|(.., number)| number).collect()
    }

    /// This one is spoken to.
    pub fn took(&mut self, number: usize) {
        self.current = Some(number);
        self.failed[number] = None;
    }

    /// This one could not be reached, ended the conversation, or is behind.
    pub fn left(&mut self, number: usize, now: Instant) {
        if let Some(failed) = self.failed.get_mut(number) {
            *failed = Some(now);
        }
        if self.current == Some(number) {
            self.current = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(zones: &[&str], zone: &str) -> Replicas {
        let one =
            |(i, zone): (usize, &&str)| Replica { host: format!("h{i}"), port: 1, zone: (*zone).to_owned() };
        Replicas::new(zones.iter().enumerate().map(one).collect(), zone)
    }

    #[test]
    fn the_own_zone_comes_first_and_nodes_spread() {
        let now = Instant::now();
        let all = replicas(&["a", "b", "b", "c"], "b");
        let mut seen = [0; 4];
        let mut draw = 0.0_f64;
        for _ in 0..100 {
            let order = all.order(now, || {
                draw = (draw + 0.618).fract();
                draw
            });
            seen[order[0]] += 1;
            assert!([1, 2].contains(&order[0]) && [1, 2].contains(&order[1]), "{order:?}");
        }
        assert!(seen[1] > 20 && seen[2] > 20, "{seen:?}");
    }

    #[test]
    fn who_is_spoken_to_stays_and_who_failed_comes_last_for_a_while() {
        let now = Instant::now();
        let mut all = replicas(&["", "", ""], "");
        all.took(2);
        assert_eq!(all.order(now, || 0.5)[0], 2);
        all.left(2, now);
        assert_eq!(all.order(now, || 0.5), [0, 1, 2]);
        all.left(0, now);
        assert_eq!(all.order(now, || 0.5)[0], 1);
        // The end of an older conversation says nothing of the new one.
        all.took(1);
        all.left(0, now);
        assert_eq!(all.order(now, || 0.5)[0], 1);
        assert_eq!(all.order(now + AVOID, || 0.5), [1, 0, 2]);
    }

    #[test]
    fn addresses_are_shown_as_they_are_dialled() {
        let replica = |host: &str| Replica { host: host.to_owned(), port: 15012, zone: String::new() }.at();
        assert_eq!((replica("a"), replica("fd00::1")), ("a:15012".to_owned(), "[fd00::1]:15012".to_owned()));
    }
}
