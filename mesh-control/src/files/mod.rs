//! Objects of a watched directory: what stands in its files is written to the store, what vanishes from them is
//! removed.
//!
//! directory ─[`scan`]─▶ objects ─▶ **[`watch`]** ─▶ store (owner `file:<dir>`) ─▶ registry
//!
//! Invariants: where a file is broken, nothing of the directory is taken or removed until it is whole again; a name that
//! somebody else owns stays theirs and is a condition on that object; nothing but the owner's own is removed, and
//! nothing at all before the directory could be read whole.
//! Several replicas that watch a directory must see the same files.
//! Not here: how texts are read (`mesh_api::manifest`).

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::error::Reason;
use mesh_api::resource::{Condition, Key, Resource};
use mesh_registry::history::By;
use mesh_registry::intent::WriteError;
use mesh_registry::source::Owner;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::engine::Engine;
use crate::engine::writes::Manner;
use crate::stop::stopped;
use scan::{Fingerprint, Scanned};

/// Between two looks at the directory.
const EACH: Duration = Duration::from_secs(1);
/// Everything is compared with the store this often, whether a file changed or not: a name may have become free.
const ALL: Duration = Duration::from_secs(10);
/// Problems that status shows.
const PROBLEMS_MAX: usize = 32;

/// What the directory came to.
#[derive(Default)]
pub struct Files {
    state: Mutex<Option<State>>,
}

#[derive(Clone, Default, Serialize)]
struct State {
    directory: String,
    objects: usize,
    /// Revision after the last pass that was whole; 0: none was.
    revision: u64,
    /// Why nothing is taken from the directory now, or what of it is not.
    problems: Vec<String>,
    /// Names that others own.
    #[serde(skip)]
    conflicts: BTreeMap<Key, String>,
}

impl Files {
    /// For `GET /v1/status`; `null` where no directory is watched.
    pub fn status(&self) -> Value {
        self.state.lock().as_ref().map_or(Value::Null, |state| json!(state))
    }

    /// What is wrong with an object because the directory claims its name too.
    pub fn conflict(&self, key: &Key) -> Option<Condition> {
        let state = self.state.lock();
        let message = state.as_ref()?.conflicts.get(key)?;
        Some(Condition::new("Conflicted", true, "ClaimedTwice", message.clone()))
    }
}

/// Follows a directory until the server stops.
pub async fn follow(engine: Arc<Engine>, directory: PathBuf, mut stop: watch::Receiver<bool>) {
    let owner = Owner::named(&format!("file:{}", directory.display()));
    let mut seen = None;
    let mut since = ALL;
    loop {
        let looked = look(directory.clone(), seen.clone(), since >= ALL).await;
        if let Some((fingerprint, scanned)) = looked {
            since = Duration::ZERO;
            let done = pass(&engine, &owner, &directory, scanned).await;
            seen = done.then_some(fingerprint);
        }
        tokio::select! {
            () = tokio::time::sleep(EACH) => since += EACH,
            () = stopped(&mut stop) => return,
        }
    }
}

/// Reads the directory if it changed, or anyhow.
async fn look(directory: PathBuf, seen: Option<Fingerprint>, anyhow: bool) -> Option<(Fingerprint, Scanned)> {
    let read = move || {
        let fingerprint = scan::fingerprint(&directory);
        (anyhow || seen.as_ref() != Some(&fingerprint)).then(|| (fingerprint, scan::scan(&directory)))
    };
    tokio::task::spawn_blocking(read).await.ok()?
}

/// Makes the store say what the directory says; false: to be tried again at once.
async fn pass(engine: &Arc<Engine>, owner: &Owner, directory: &Path, scanned: Scanned) -> bool {
    let before = engine.files.state.lock().clone().unwrap_or_default();
    let mut state = State { directory: directory.display().to_string(), ..State::default() };
    let mut well = true;
    match scanned {
        Err(problems) => {
            // What was taken before stays.
            State { objects: state.objects, revision: state.revision, conflicts: state.conflicts, .. } =
                before.clone();
            state.problems = problems;
        }
        Ok(objects) => {
            state.objects = objects.len();
            well = write(engine, owner, objects, &mut state).await;
        }
    }
    state.problems.truncate(PROBLEMS_MAX);
    for problem in state.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        tracing::warn!(directory = state.directory, problem, "the watched directory");
    }
    *engine.files.state.lock() = Some(state);
    well
}

async fn write(engine: &Arc<Engine>, owner: &Owner, objects: Vec<Resource>, state: &mut State) -> bool {
    let by = By { id: owner.as_str().to_owned(), name: String::new() };
    let manner = Manner { owner: owner.clone(), ..Manner::rest(by) };
    let mut well = true;
    let named: BTreeSet<Key> = objects.iter().map(Resource::key).collect();
    for object in objects {
        let key = object.key();
        match engine.put(manner.clone(), object).await {
            Ok(written) => {
                state.revision = state.revision.max(written.revision);
                if written.changed {
                    tracing::info!(%key, %owner, revision = written.revision, "applied");
                }
            }
            Err(WriteError::Refused(error)) => {
                if error.reason == Reason::Owned {
                    let message = format!(
                        "{key} came first and stays; also claimed by {owner}: rename one, or remove it"
                    );
                    state.conflicts.insert(key.clone(), message);
                }
                state.problems.push(format!("{key}: {error}"));
            }
            Err(WriteError::Store(error)) => {
                state.problems.push(format!("{key}: {error}"));
                well = false;
            }
        }
    }
    for key in engine.owned_by(owner).into_iter().filter(|key| !named.contains(key)) {
        match engine.delete(manner.clone(), key.clone()).await {
            Ok(revision) => {
                state.revision = state.revision.max(revision);
                tracing::info!(%key, %owner, revision, "deleted");
            }
            // It went a moment ago.
            Err(WriteError::Refused(error)) if error.reason == Reason::NotFound => {}
            Err(error) => {
                state.problems.push(format!("{key}: {error}"));
                well = false;
            }
        }
    }
    well
}
