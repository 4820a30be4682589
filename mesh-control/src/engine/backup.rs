//! All that people wrote as one file, and an empty store filled from it.
//!
//! Lines of JSON: a head (format, store, revision, number of entries), then an entry each, by key. In it: intent,
//! tokens (their hashes), the nodes that have joined, virtual addresses; all of one revision. Not in it: history,
//! registrations (agents tell them again), the authority's key (a file of the data directory), issued certificates.
//!
//! Invariants: nothing is written before every line was read and found good; a restore that was cut off is known by
//! [`MARK`], and that store is not filled again; nodes come last, so that no agent sees half of it.

use std::sync::Arc;

use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::Key;
use mesh_registry::history::{self, By, Past, What};
use mesh_registry::intent::WriteError;
use mesh_registry::record::{INTENT, REGISTERED, Record, intent_key};
use mesh_registry::store::{Entry, MAX_COMPARE, MAX_TXN_BYTES, MAX_VALUE, StoreError, Txn};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Engine;
use crate::auth::members::Member;
use crate::auth::token::TokenRecord;
use crate::clock::unix_ms;

const TOKENS: &str = "/tokens/";
const NODES: &str = "/nodes/";
const VIPS: &str = "/vip/";
/// There while a restore is under way.
const MARK: &str = "/restoring";
const FORMAT: u32 = 1;
/// Entries of one transaction: each is compared, and noted in history.
const AT_ONCE: usize = MAX_COMPARE / 2;
/// Bytes of values that one transaction begins with: each of an object stands in its history as well, where that keeps it.
const BYTES: usize = (MAX_TXN_BYTES - MAX_VALUE) / 2;

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    backup_of: String,
    format: u32,
    revision: u64,
    taken_ms: u64,
    entries: usize,
}

/// Every other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: String,
}

impl Engine {
    /// The file.
    pub async fn backup(self: &Arc<Self>) -> Result<Vec<u8>, WriteError> {
        self.blocking(|engine| {
            let mut range = engine.store.range(INTENT, None)?;
            for prefix in [VIPS, TOKENS, NODES] {
                range.entries.extend(engine.store.range(prefix, Some(range.revision))?.entries);
            }
            let head = Head {
                backup_of: engine.store.id().to_owned(),
                format: FORMAT,
                revision: range.revision,
                taken_ms: unix_ms(),
                entries: range.entries.len(),
            };
            let mut out = format!("{}\n", json!(head)).into_bytes();
            for Entry { key, value, .. } in range.entries {
                let value = String::from_utf8(value)
                    .map_err(|cause| StoreError::Corrupt { path: key.clone(), cause: cause.to_string() })?;
                out.extend_from_slice(format!("{}\n", json!(Line { key, value })).as_bytes());
            }
            Ok(out)
        })
        .await
    }

    /// Fills an empty store; how many entries were written, and the revision since.
    pub async fn restore(self: &Arc<Self>, by: By, file: Vec<u8>) -> Result<(usize, u64), WriteError> {
        self.blocking(move |engine| {
            let lines = read(&file)?;
            drop(file);
            let mesh = engine.emptiness()?;
            engine.store.transact(Txn::default().if_at(MARK, 0).put(MARK, "since then"))?;
            let count = lines.len();
            let (nodes, rest): (Vec<_>, Vec<_>) =
                lines.into_iter().partition(|(line, _)| line.key.starts_with(NODES));
            for lines in batches(&rest).chain(batches(&nodes)) {
                let txn = lines.iter().fold(Txn::default(), |txn, line| restored(txn, line, &by, mesh));
                engine.store.transact(txn)?;
            }
            let revision = engine.store.transact(Txn::default().delete(MARK))?;
            engine.load_tokens()?;
            engine.load_members()?;
            Ok((count, revision))
        })
        .await
    }

    /// Refuses a store that holds more than a first start leaves; the revision of the Mesh that it made.
    fn emptiness(&self) -> Result<u64, WriteError> {
        let refuse = |why: &str| {
            let accepted = "a control plane that was just started on an empty data directory";
            ApiError::new(Reason::Conflict, "", Value::Null, accepted)
                .saying(format!("the store is not empty ({why}); accepted: {accepted}"))
        };
        if self.store.get(MARK)?.is_some() {
            return Err(refuse("a restore into it was cut off").into());
        }
        let mesh = intent_key(&Key::mesh());
        let (mut found, mut others) = (0, Vec::new());
        for entry in self.store.range(INTENT, None)?.entries {
            if entry.key == mesh && entry.created == entry.modified {
                found = entry.modified;
            } else {
                others.push(entry.key);
            }
        }
        for prefix in [REGISTERED, NODES] {
            others.extend(self.store.range(prefix, None)?.entries.into_iter().map(|entry| entry.key));
        }
        match others.first() {
            Some(first) => Err(refuse(&format!("{} objects, {first} among them", others.len())).into()),
            None => Ok(found),
        }
    }
}

/// Lines in portions that a transaction takes: a portion holds one that is large, or several that are not.
fn batches<T>(mut lines: &[(Line, T)]) -> impl Iterator<Item = &[(Line, T)]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |(line, _): &&(Line, T)| {
            bytes += line.key.len() + line.value.len();
            bytes <= BYTES
        };
        let count = lines.iter().take(AT_ONCE).take_while(fits).count().max(1).min(lines.len());
        let (batch, rest) = lines.split_at(count);
        lines = rest;
        (count > 0).then_some(batch)
    })
}

/// Every line, found good; with the record of an object.
fn read(file: &[u8]) -> Result<Vec<(Line, Option<Record>)>, ApiError> {
    let mut lines = file.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let refuse = |number: usize, cause: String| {
        let path = format!("line {}", number + 1);
        let accepted = "a file of `meshctl backup`, whole";
        ApiError::new(Reason::Malformed, path.clone(), Value::Null, accepted)
            .saying(format!("{path}: {cause}; accepted: {accepted}"))
    };
    let Some((number, first)) = lines.next() else { return Err(refuse(0, "nothing is there".to_owned())) };
    let head: Head = serde_json::from_slice(first).map_err(|cause| refuse(number, cause.to_string()))?;
    if head.format != FORMAT {
        return Err(refuse(number, format!("format {} is not known, {FORMAT} is", head.format)));
    }
    let mut out = Vec::new();
    for (number, text) in lines {
        let line: Line = serde_json::from_slice(text).map_err(|cause| refuse(number, cause.to_string()))?;
        let record = check(&line).map_err(|cause| refuse(number, cause))?;
        out.push((line, record));
    }
    if out.len() != head.entries {
        let cause = format!("the file was cut: {} of {} entries are there", out.len(), head.entries);
        return Err(refuse(out.len(), cause));
    }
    Ok(out)
}

fn check(line: &Line) -> Result<Option<Record>, String> {
    let Line { key, value } = line;
    let misplaced = || format!("{key} does not hold what its name says");
    if key.starts_with(INTENT) {
        let entry = Entry {
            key: key.clone(),
            value: value.clone().into_bytes(),
            created: 0,
            modified: 0,
            lease: None,
        };
        let record = Record::read(&entry).map_err(|cause| cause.to_string())?;
        return if intent_key(&record.resource.key()) == *key { Ok(Some(record)) } else { Err(misplaced()) };
    }
    let holds = if let Some(id) = key.strip_prefix(TOKENS) {
        let record: TokenRecord = serde_json::from_str(value).map_err(|cause| cause.to_string())?;
        record.id == id
    } else if let Some(node) = key.strip_prefix(NODES) {
        let member: Member = serde_json::from_str(value).map_err(|cause| cause.to_string())?;
        member.node == node
    } else if let Some(address) = key.strip_prefix(VIPS) {
        address.parse::<std::net::IpAddr>().is_ok()
    } else {
        return Err(format!("{key} is nothing that a backup holds"));
    };
    if holds { Ok(None) } else { Err(misplaced()) }
}

/// Adds a line to a transaction; an object with its first entry of history.
fn restored(txn: Txn, (line, record): &(Line, Option<Record>), by: &By, mesh: u64) -> Txn {
    let Some(record) = record else { return txn.put(line.key.clone(), line.value.clone()) };
    let key = record.resource.key();
    let is_mesh = key == Key::mesh();
    let number = if is_mesh && mesh > 0 { 2 } else { 1 };
    let past = Past {
        revision: 0,
        at_ms: unix_ms(),
        by: by.clone(),
        owner: record.owner.clone(),
        what: What::Restored,
        object: Past::of(&record.resource),
    };
    let txn = history::note(txn, &key, number, &past);
    let record = Record { number, ..record.clone() };
    txn.if_at(line.key.clone(), if is_mesh { mesh } else { 0 }).put(line.key.clone(), record.write())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(file: &str) -> String {
        read(file.as_bytes()).err().expect("refused").message
    }

    #[test]
    fn portions_hold_all_lines_and_are_small() {
        let line = |bytes: usize| (Line { key: "k".into(), value: "v".repeat(bytes) }, ());
        let lines: Vec<_> = [10, BYTES + 5, BYTES, 1].into_iter().chain([1; 100]).map(line).collect();
        let sizes: Vec<usize> = batches(&lines).map(<[_]>::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 104, "{sizes:?}");
        assert_eq!(sizes[..3], [1, 1, 1], "{sizes:?}");
        assert!(sizes.iter().all(|size| (1..=AT_ONCE).contains(size)), "{sizes:?}");
        assert_eq!(batches::<()>(&[]).count(), 0);
    }

    #[test]
    fn a_file_is_read_whole_or_refused_by_line() {
        let head = |n: usize| {
            format!("{}\n", json!({"backupOf": "s", "format": 1, "revision": 3, "takenMs": 1, "entries": n}))
        };
        let vip = "{\"key\":\"/vip/10.0.0.1\",\"value\":\"d/web\"}\n";
        assert_eq!(read(format!("{}{vip}", head(1)).as_bytes()).unwrap().len(), 1);
        assert!(told("").contains("line 1: nothing"));
        assert!(told(&format!("{}{vip}", head(2))).contains("was cut: 1 of 2"));
        assert!(told(&head(0).replace("\"format\":1", "\"format\":9")).contains("format 9"));
        for bad in [
            "{\"key\":\"/other\",\"value\":\"\"}",
            "{\"key\":\"/vip/x\",\"value\":\"\"}",
            "{",
            "{\"key\":\"/intent/services/a/b\",\"value\":\"{}\"}",
            "{\"key\":\"/tokens/a\",\"value\":\"{}\"}",
        ] {
            let error = told(&format!("{}{bad}\n", head(1)));
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }
}
