//! Follows etcd into the mirror: everything once, then each change; everything anew where history is gone.
//!
//! Invariants: a revision is taken in whole; waiters and hooks are told after it is there; a stream that breaks is begun
//! again where it broke, at another member.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Failure;
use super::pb::{self, RangeRequest, WatchCreateRequest};
use super::{Shared, failed};

/// Keys of a page.
const PAGE: i64 = 256;
/// How long a page may take.
const PAGE_TIME: Duration = Duration::from_secs(5);
/// Pause after a stream that broke.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Events of one answer, gathered from its fragments, at most.
const EVENTS_MAX: usize = 1 << 20;

/// Why a stream ended.
enum End {
    Broken(String),
    /// History is gone.
    Compacted,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Broken(failure.cause)
    }
}

/// Everything, as it is now; the revision of etcd that it is of.
pub(super) async fn load(shared: &Shared) -> Result<i64, Failure> {
    let (begin, end) = shared.layout.all();
    let (mut key, mut revision, mut all) = (begin, 0, Vec::new());
    loop {
        let request = RangeRequest { key, range_end: end.clone(), limit: PAGE, revision, keys_only: false };
        let page = shared.client.range(request, Instant::now() + PAGE_TIME).await?;
        if revision == 0 {
            // Of the first page, and of the others with it: their own headers tell of later ones.
            revision = page.header.unwrap_or_default().revision;
        }
        all.extend(page.kvs);
        match all.last() {
            Some(last) if page.more => key = [last.key.as_slice(), b"\0"].concat(),
            _ => break,
        }
    }
    let mut mirror = shared.mirror.lock();
    let known = mirror.id.clone();
    mirror.load(&shared.layout, &all);
    if !known.is_empty() && mirror.id != known {
        let cause = format!(
            "it holds another store ({:?}, not {known}): if that is meant, restart this mesh-control",
            mirror.id
        );
        mirror.id = known;
        return Err(Failure { cause, undone: true });
    }
    drop(mirror);
    shared.told();
    Ok(revision)
}

/// Follows until the process ends; `at`: the revision of etcd that the mirror is of.
pub(super) async fn follow(shared: Arc<Shared>, mut at: i64) {
    let mut pause = PAUSE;
    loop {
        let begun = Instant::now();
        let cause = match stream(&shared, &mut at).await {
            End::Broken(cause) => cause,
            End::Compacted => match load(&shared).await {
                Ok(revision) => {
                    tracing::warn!(
                        "etcd has forgotten what this replica had not heard yet: it has read everything anew"
                    );
                    at = revision;
                    continue;
                }
                Err(failure) => failure.cause,
            },
        };
        shared.broken(&cause);
        shared.client.turn();
        pause = if begun.elapsed() > PAUSE_MAX { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
        tokio::time::sleep(pause).await;
    }
}

async fn stream(shared: &Shared, at: &mut i64) -> End {
    match watch(shared, at).await {
        Ok(()) => End::Broken("etcd ended the watch".to_owned()),
        Err(end) => end,
    }
}

async fn watch(shared: &Shared, at: &mut i64) -> Result<(), End> {
    let (key, range_end) = shared.layout.all();
    let create = WatchCreateRequest { key, range_end, start_revision: *at + 1, fragment: true };
    let mut answers = shared.client.watch(create).await?;
    let mut held: Vec<pb::Event> = Vec::new();
    loop {
        let answer = answers.message().await.map_err(|status| End::Broken(failed(&status)))?;
        let Some(answer) = answer else { return Ok(()) };
        if answer.created {
            shared.watching();
        }
        if answer.canceled {
            return Err(match answer.compact_revision {
                0 => End::Broken(format!("etcd cancelled the watch: {}", answer.cancel_reason)),
                _ => End::Compacted,
            });
        }
        held.extend(answer.events);
        if answer.fragment && held.len() < EVENTS_MAX {
            continue;
        }
        let newest = held.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        if let Some(newest) = newest {
            shared.mirror.lock().apply(&shared.layout, &held);
            held.clear();
            *at = newest.max(*at);
            shared.told();
        }
    }
}
