//! This replica's seat in etcd: a lease, what it says of itself under that lease, and the lead if nobody has it.
//!
//! Invariants: it believes to lead for no longer than etcd keeps the lead for it: counted from before each renewal was
//! asked for; what it says ends with its lease, whatever becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::pb::{RequestOp, TxnRequest};
use super::plan::{delete, modified, put_under, says};
use crate::replicas::{LEADER, Replicas};

/// How long a replica that is gone keeps its seat: etcd does not do with much less.
const SEAT: Duration = Duration::from_secs(3);
/// How often it is renewed.
const RENEW: Duration = Duration::from_millis(800);
/// How long a call may take.
const CALL: Duration = Duration::from_millis(1500);
/// Pause after one that failed.
const PAUSE: Duration = Duration::from_millis(300);
/// Keys of one transaction.
const AT_ONCE: usize = 60;
/// How often the leader has etcd forget what is older than that.
const FORGET: Duration = Duration::from_mins(5);

struct Seat {
    lease: i64,
    /// Until when etcd keeps it, at least.
    until: Instant,
}

/// Holds a seat until the process ends.
pub(super) async fn hold(shared: Arc<Shared>, replicas: Arc<Replicas>) {
    let mut forget = (Instant::now(), shared.mirror.lock().revision());
    loop {
        let sent = Instant::now();
        let granted = shared.client.grant(SEAT.as_secs() as i64, sent + CALL).await;
        match granted {
            Ok(lease) => sit(&shared, &replicas, Seat { lease, until: sent + SEAT }, &mut forget).await,
            Err(failure) => {
                shared.heard(Err(&failure.cause));
                replicas.seen(&shared.mirror.lock().here, None);
                tokio::time::sleep(PAUSE).await;
            }
        }
        if replicas.left() {
            return std::future::pending().await;
        }
    }
}

/// Until the lease is lost, or the replica leaves.
async fn sit(shared: &Shared, replicas: &Replicas, mut seat: Seat, forget: &mut (Instant, u64)) {
    let mut turned = shared.turned.subscribe();
    let mut renew = tokio::time::interval(RENEW);
    renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let me = format!("{} {:x}", replicas.name(), seat.lease);
    // What stands there from a life before has no lease that holds.
    let mut stale = true;
    loop {
        tokio::select! {
            _ = renew.tick() => {
                let sent = Instant::now();
                match shared.client.keep(seat.lease, sent + CALL).await {
                    Ok(true) => {
                        seat.until = sent + SEAT;
                        shared.heard(Ok(()));
                    }
                    Ok(false) => return,
                    Err(failure) => shared.heard(Err(&failure.cause)),
                }
            }
            _ = turned.changed() => {}
            () = replicas.news() => {}
        }
        if replicas.left() {
            let _ = shared.client.revoke(seat.lease, Instant::now() + CALL).await;
            replicas.gone();
            return;
        }
        if seat.until < Instant::now() {
            replicas.seen(&shared.mirror.lock().here, None);
            return;
        }
        let (asked, leads) = {
            let here = &shared.mirror.lock().here;
            let leads = here.get(LEADER).is_some_and(|leader| leader == me.as_bytes());
            replicas.seen(here, leads.then_some(seat.until));
            (ask(shared, replicas, &seat, here, &me, stale), leads)
        };
        if let Some(request) = asked {
            match shared.client.txn(request, Instant::now() + CALL).await {
                Ok(_) => stale = false,
                Err(failure) => {
                    tracing::debug!(%failure, "what this replica says of itself is not written; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        } else if leads && forget.0.elapsed() >= FORGET && shared.forgets {
            if let Err(failure) = shared.client.compact(forget.1 as i64, Instant::now() + CALL).await {
                tracing::debug!(%failure, "etcd did not forget its history");
            }
            *forget = (Instant::now(), shared.mirror.lock().revision());
        }
    }
}

/// What to write so that what stands there is what this replica says; `None`: it is.
fn ask(
    shared: &Shared,
    replicas: &Replicas,
    seat: &Seat,
    here: &BTreeMap<String, Vec<u8>>,
    me: &str,
    stale: bool,
) -> Option<TxnRequest> {
    let wanted = replicas.wanted();
    let own: BTreeSet<&String> = here.keys().filter(|key| replicas.is_own(key)).collect();
    let put =
        |(key, value): (&String, &Vec<u8>)| put_under(shared.layout.here(key), value.clone(), seat.lease);
    let fresh = wanted.iter().filter(|(key, value)| stale || here.get(*key) != Some(*value));
    let gone = own.into_iter().filter(|key| !wanted.contains_key(*key));
    let mut success: Vec<RequestOp> =
        fresh.map(put).chain(gone.map(|key| delete(shared.layout.here(key)))).take(AT_ONCE).collect();
    let leader = shared.layout.here(LEADER);
    let mut compare = Vec::new();
    match here.get(LEADER) {
        // On its own: who comes second must not lose the rest.
        None if success.is_empty() => {
            compare.push(modified(leader.clone(), 0));
            success.push(put_under(leader, me.as_bytes().to_vec(), seat.lease));
        }
        // This replica led before it was started anew: nobody renews that lease.
        Some(of) if stale && success.is_empty() && of != me.as_bytes() && replicas.is_mine(of) => {
            compare.push(says(leader.clone(), of.clone()));
            success.push(put_under(leader, me.as_bytes().to_vec(), seat.lease));
        }
        _ => {}
    }
    (!success.is_empty()).then(|| TxnRequest { compare, success, failure: Vec::new() })
}
