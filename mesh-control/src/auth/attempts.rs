//! How often an address may come with a token that is none: a bucket of attempts an address, refilled with time.
//!
//! Invariants: at most [`ADDRESSES`] addresses are remembered, the one that failed longest ago goes first; an address
//! without failures costs nothing. IPv6 counts by /64, which is what one host may choose addresses from.
//! Not here: what a failure is (REST's guard), the clock (`now` is an argument).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Failures that an address may have at once.
const BURST: u32 = 20;
/// One more after this.
const REFILL: Duration = Duration::from_secs(1);
/// Addresses that are remembered.
const ADDRESSES: usize = 4096;

/// What is remembered of addresses that failed.
#[derive(Debug, Default)]
pub struct Attempts {
    by: BTreeMap<IpAddr, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    failures: u32,
    /// Up to when failures were forgiven.
    at: Instant,
}

impl Bucket {
    fn forgive(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_millis() / REFILL.as_millis();
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_sub(passed);
        self.at = if self.failures == 0 { now } else { self.at + REFILL * passed };
    }
}

impl Attempts {
    /// How long this address is to wait before its token is looked at; `None`: not at all.
    pub fn wait(&mut self, address: IpAddr, now: Instant) -> Option<Duration> {
        let key = network(address);
        let bucket = self.by.get_mut(&key)?;
        bucket.forgive(now);
        if bucket.failures == 0 {
            self.by.remove(&key);
            return None;
        }
        (bucket.failures >= BURST).then(|| REFILL.saturating_sub(now.saturating_duration_since(bucket.at)))
    }

    /// An address came with a token that is none.
    pub fn failed(&mut self, address: IpAddr, now: Instant) {
        let key = network(address);
        if !self.by.contains_key(&key) && self.by.len() >= ADDRESSES {
            let oldest = self.by.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| *key);
            oldest.map(|oldest| self.by.remove(&oldest));
        }
        let bucket = self.by.entry(key).or_insert(Bucket { failures: 0, at: now });
        bucket.forgive(now);
        bucket.failures = (bucket.failures + 1).min(BURST);
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_too_often_waits_and_is_forgiven_with_time() {
        let (mut attempts, begin) = (Attempts::default(), Instant::now());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..BURST {
            assert_eq!(attempts.wait(address, begin), None);
            attempts.failed(address, begin);
        }
        assert_eq!(attempts.wait(address, begin), Some(REFILL));
        assert_eq!(attempts.wait("192.0.2.2".parse().unwrap(), begin), None, "another address");
        assert_eq!(attempts.wait("::ffff:192.0.2.1".parse().unwrap(), begin), Some(REFILL), "the same");
        assert_eq!(attempts.wait(address, begin + REFILL / 2), Some(REFILL / 2));
        assert_eq!(attempts.wait(address, begin + REFILL), None, "one is forgiven");
        attempts.failed(address, begin + REFILL);
        assert!(attempts.wait(address, begin + REFILL).is_some());
        assert_eq!(attempts.wait(address, begin + REFILL * 60), None);
        assert!(attempts.by.is_empty(), "forgotten");
    }

    #[test]
    fn addresses_of_one_host_count_together_and_memory_is_bounded() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for last in 0..BURST {
            attempts.failed(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last as u16).into(), now);
        }
        assert!(attempts.wait("2001:db8:0:1::ffff".parse().unwrap(), now).is_some());
        for n in 0..2 * ADDRESSES as u32 {
            let address = std::net::Ipv4Addr::from(n);
            attempts.failed(address.into(), now + Duration::from_millis(n.into()));
        }
        assert_eq!(attempts.by.len(), ADDRESSES);
    }
}
