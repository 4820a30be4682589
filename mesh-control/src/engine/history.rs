//! What was written to objects, for people, and back to it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mesh_api::diff::changes;
use mesh_api::resource::Key;
use mesh_registry::history::{self, Past, What};
use mesh_registry::intent::{WriteError, Written};
use serde_json::{Value, json};

use super::Engine;
use super::writes::Manner;

/// Entries of all objects together, and their bytes.
const ENTRIES: usize = 50_000;
const BYTES: usize = 64 << 20;
/// Writes between two looks at these bounds.
const LOOK_EACH: u64 = 512;

impl Engine {
    /// What was written to an object, the newest first, each with what it changed.
    pub async fn history(self: &Arc<Self>, key: Key) -> Result<Vec<Value>, WriteError> {
        let all = self.blocking(move |engine| engine.intents().history(&key)).await?;
        let before = all.iter().skip(1).map(Some).chain([None]);
        Ok(all.iter().zip(before).map(|(past, before)| shown(past, before)).collect())
    }

    /// Writes an object as it was at a revision.
    pub async fn roll_back(
        self: &Arc<Self>,
        manner: Manner,
        key: Key,
        to: u64,
    ) -> Result<Written, WriteError> {
        let written = self
            .blocking(move |engine| {
                let write = || engine.intents().roll_back(&manner.author(), &key, to, manner.expect);
                if manner.dry_run { write() } else { engine.commit(write) }
            })
            .await?;
        self.noted();
        Ok(written)
    }

    /// History grew: now and then its bounds are looked at, beside the write that is being answered.
    pub(super) fn noted(self: &Arc<Self>) {
        if self.history_writes.fetch_add(1, Relaxed) % LOOK_EACH != LOOK_EACH - 1 {
            return;
        }
        let engine = self.clone();
        tokio::task::spawn_blocking(move || match history::trim(&*engine.store, ENTRIES, BYTES) {
            Ok(0) => {}
            Ok(gone) => {
                tracing::info!(gone, "the oldest of history was forgotten");
                engine.metrics.history_dropped.add(gone as u64);
            }
            Err(error) => tracing::warn!(%error, "cannot bound history; trying again later"),
        });
    }
}

fn shown(past: &Past, before: Option<&Past>) -> Value {
    let nothing = json!({});
    let of = |past: Option<&Past>| past.and_then(|past| past.object.clone()).map(bare);
    let (old, new) = (of(before), of(Some(past)));
    let mut out = json!({
        "revision": past.revision,
        "atMs": past.at_ms,
        "by": { "id": past.by.id, "name": past.by.name },
        "owner": past.owner.as_str(),
        "what": past.what.name(),
        "object": past.object,
        "changes": changes(old.as_ref().unwrap_or(&nothing), new.as_ref().unwrap_or(&nothing)),
    });
    if let What::RolledBack(to) = past.what {
        out["to"] = to.into();
    }
    out
}

/// What people write of an object.
fn bare(mut object: Value) -> Value {
    let labels = object["metadata"]["labels"].take();
    json!({ "labels": labels, "spec": object["spec"].take() })
}
