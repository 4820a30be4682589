//! How often workloads of this node are asked, where the policy of their service limits that: on the node that is called,
//! for whoever calls.
//!
//! A bucket is a number in a map that all workers share, in shards. What has rested makes room; where there is none left,
//! those for whom there is no bucket share one.
//!
//! Invariant: bounded by [`BUCKETS`] a shard. Cost: nothing where the service has no rate.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, RandomState};

use mesh_common::policy::{Caller, UNPROVED};
use mesh_core::authorise::NOBODY;
use mesh_core::error::ProxyError;
use mesh_core::resilience::Resilience;
use mesh_core::resilience::rate::{By, Rate, retry_after};
use mesh_core::snapshot::{Service, Snapshot};
use parking_lot::Mutex;

use super::super::hash::Quick;
use super::super::intercept::Hop;
use super::super::member::Member;
use super::super::whose::Whose;
use super::super::worker::Worker;
use crate::sys::monotonic_ns;

/// Buckets of a shard.
const BUCKETS: usize = 8192;
const SHARDS: usize = 16;

/// Which bucket: workload and port, limit, whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    workload: u32,
    port: u16,
    number: u32,
    who: u64,
}

type Shard = HashMap<Key, u64, BuildHasherDefault<Quick>>;

/// The buckets of this node.
#[derive(Debug, Default)]
pub struct Buckets {
    shards: [Mutex<Shard>; SHARDS],
    /// Nobody chooses keys that meet on purpose.
    random: RandomState,
}

impl Buckets {
    /// One more of these; nanoseconds until the next where it is too much.
    fn admit(&self, rate: &Rate, key: Key, now: u64) -> Result<(), u64> {
        let mut shard = self.shards[key.who as usize % SHARDS].lock();
        if shard.len() >= BUCKETS && !shard.contains_key(&key) {
            shard.retain(|_, empty| !Rate::is_rested(*empty, now));
        }
        // Those who find no room share one.
        let key =
            if shard.len() >= BUCKETS && !shard.contains_key(&key) { Key { who: 0, ..key } } else { key };
        let bucket = shard.entry(key).or_default();
        *bucket = rate.admit(*bucket, now)?;
        Ok(())
    }

    fn hash(&self, what: impl Hash) -> u64 {
        // 0 is those who share one.
        self.random.hash_one(what).max(1)
    }
}

/// May a request go to this workload of ours now? `header` gives the value of one of its headers.
fn admit(
    worker: &Worker,
    (snapshot, asked): (&Snapshot, &Resilience),
    (member, whose): (&Member, &Whose),
    hop: &Hop,
    header: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<(), ProxyError> {
    let (buckets, now) = (&worker.common.buckets, monotonic_ns());
    let workload = if let Whose::Member = whose { hop.policed } else { member.workload };
    for (number, rate) in (0..).zip(&asked.rates) {
        let who = match &rate.by {
            By::All => 1,
            By::Source => source(worker, snapshot, member, whose),
            By::Header(name) => header(name).map_or(1, |value| buckets.hash(value)),
        };
        let key = Key { workload, port: hop.address.port(), number, who };
        buckets
            .admit(rate, key, now)
            .map_err(|wait| ProxyError::RateLimited(u32::try_from(retry_after(wait)).unwrap_or(u32::MAX)))?;
    }
    Ok(())
}

/// Who calls, as far as that is proved; else from where.
fn source(worker: &Worker, snapshot: &Snapshot, member: &Member, whose: &Whose) -> u64 {
    let buckets = &worker.common.buckets;
    let known = |caller: Caller| {
        let proved = caller.identity != UNPROVED.identity && caller.identity != NOBODY.identity;
        proved.then(|| buckets.hash(caller.identity))
    };
    match whose {
        Whose::Member => buckets.hash(member.identity),
        Whose::Other(other) => {
            let (caller, _) = other.caller(&*worker.sockets, snapshot, false);
            known(caller).unwrap_or_else(|| buckets.hash(other.ends().0.ip()))
        }
        Whose::Tunnel(tunnel) => known(tunnel.caller(snapshot)).unwrap_or_else(|| buckets.hash(&tunnel.peer)),
    }
}

/// May a request go there now? Only workloads of this node are asked about, and `backend`, where it is known, saves the look
/// for those whose service asks for nothing.
pub fn limit(
    worker: &Worker,
    parties: (&Member, &Whose),
    hop: &Hop,
    backend: Option<&Service>,
    header: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<(), ProxyError> {
    if !hop.local || hop.service == 0 || backend.is_some_and(|service| service.resilience.is_none()) {
        return Ok(());
    }
    worker.with_snapshot(|snapshot| {
        let service = snapshot.services.get(&hop.service);
        match service.and_then(|service| service.resilience.as_ref()) {
            Some(asked) if !asked.rates.is_empty() => admit(worker, (snapshot, asked), parties, hop, header),
            _ => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn buckets_are_bounded_and_who_finds_none_shares_one() {
        let buckets = Buckets::default();
        let rate = Rate::new(1, Duration::from_secs(1), 1, By::Source);
        let of = |who: u64| Key { workload: 1, port: 80, number: 0, who: who * SHARDS as u64 };
        for who in 1..=BUCKETS as u64 {
            assert!(buckets.admit(&rate, of(who), 1).is_ok());
        }
        assert!(buckets.admit(&rate, of(5), 1).is_err(), "it has its own");
        let beyond = |who| buckets.admit(&rate, of(BUCKETS as u64 + who), 1);
        assert!(beyond(1).is_ok() && beyond(2).is_err(), "they share one");
        assert!(buckets.shards[0].lock().len() <= BUCKETS + 1);
        assert!(buckets.admit(&rate, of(BUCKETS as u64 + 9), 3_000_000_000).is_ok(), "the rested have gone");
        assert!(buckets.shards[0].lock().len() < 9);
    }
}
