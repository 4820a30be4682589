//! What was written to each object: by whom, when, what. Written in the transaction that changes the object, so
//! that it holds whichever store it is.
//!
//! | key | value |
//! |---|---|
//! | `/history/<plural>/<namespace>/<name>/<number>` | who, when, what, and the object as it was after |
//!
//! Numbers count an object's writes; the revision of an entry is the store's own (the transaction's).
//! Bounds: [`KEPT`] entries an object, the oldest go; over all of it [`trim`], which the server calls now and then;
//! objects of more than [`OBJECT_MAX`] bytes are not kept, only that they were written.
//! Not here: when they are written ([`crate::intent`]), what differs between two (`mesh_api::diff`).

use mesh_api::resource::{Key, Resource};
use serde_json::{Value, json};

use crate::source::Owner;
use crate::store::{Entry, Store, StoreError, Txn};

/// Prefix of all of it.
pub const HISTORY: &str = "/history/";
/// Entries of one object.
pub const KEPT: u32 = 20;
/// Largest object that is kept, in bytes of JSON: beside the object itself a transaction stays below what etcd takes.
pub const OBJECT_MAX: usize = 384 << 10;
/// Entries that one transaction forgets.
const AT_ONCE: usize = 1000;

/// Who wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct By {
    /// Id of the token, or `system`, or the source's name.
    pub id: String,
    /// What people call it; may be empty.
    pub name: String,
}

impl By {
    /// The control plane itself.
    pub fn system() -> Self {
        Self { id: "system".to_owned(), name: String::new() }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The object is new.
    Created,
    /// It says something else.
    Updated,
    /// It is gone.
    Deleted,
    /// It is again what it was at this revision.
    RolledBack(u64),
    /// It came out of a backup.
    Restored,
}

impl What {
    /// As it is stored and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
            Self::RolledBack(_) => "rolledBack",
            Self::Restored => "restored",
        }
    }

    fn read(name: &str, to: Option<u64>) -> Option<Self> {
        Some(match name {
            "created" => Self::Created,
            "updated" => Self::Updated,
            "deleted" => Self::Deleted,
            "rolledBack" => Self::RolledBack(to?),
            "restored" => Self::Restored,
            _ => return None,
        })
    }
}

/// One write of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Revision of the write; 0: not written yet.
    pub revision: u64,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Who wrote.
    pub by: By,
    /// Whose the object is.
    pub owner: Owner,
    /// What was done.
    pub what: What,
    /// The object after; `None`: gone, or too large to be kept.
    pub object: Option<Value>,
}

impl Past {
    /// The object as history keeps it: without what is observed.
    pub fn of(resource: &Resource) -> Option<Value> {
        let mut object = resource.to_json();
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        (object.to_string().len() <= OBJECT_MAX).then_some(object)
    }

    /// As stored.
    pub fn write(&self) -> Vec<u8> {
        let mut out = json!({
            "atMs": self.at_ms,
            "by": { "id": self.by.id, "name": self.by.name },
            "owner": self.owner.as_str(),
            "what": self.what.name(),
            "object": self.object,
        });
        if let What::RolledBack(to) = self.what {
            out["to"] = to.into();
        }
        out.to_string().into_bytes()
    }

    /// From what is stored.
    pub fn read(entry: &Entry) -> Result<Self, StoreError> {
        let damaged = |cause: String| StoreError::Corrupt { path: entry.key.clone(), cause };
        let value: Value =
            serde_json::from_slice(&entry.value).map_err(|cause| damaged(cause.to_string()))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let what = What::read(value["what"].as_str().unwrap_or_default(), value["to"].as_u64());
        Ok(Self {
            revision: entry.modified,
            at_ms: value["atMs"].as_u64().unwrap_or(0),
            by: By { id: text(&value["by"]["id"]), name: text(&value["by"]["name"]) },
            owner: Owner::named(&text(&value["owner"])),
            what: what.ok_or_else(|| damaged("it does not say what was done".to_owned()))?,
            object: Some(value["object"].clone()).filter(|object| !object.is_null()),
        })
    }
}

fn prefix(key: &Key) -> String {
    format!("{HISTORY}{}/{}/{}/", key.kind.plural(), key.namespace, key.name)
}

fn entry_key(key: &Key, number: u32) -> String {
    format!("{}{number:010}", prefix(key))
}

/// An object's writes, the oldest first.
pub fn of(store: &dyn Store, key: &Key) -> Result<Vec<Past>, StoreError> {
    store.range(&prefix(key), None)?.entries.iter().map(Past::read).collect()
}

/// Number of an object's last entry; 0: there is none.
pub fn last(store: &dyn Store, key: &Key) -> Result<u32, StoreError> {
    let entries = store.range(&prefix(key), None)?.entries;
    let number = |entry: &Entry| entry.key.rsplit('/').next().and_then(|text| text.parse().ok());
    Ok(entries.last().and_then(number).unwrap_or(0))
}

/// Adds to a transaction that entry `number` is written, and that the one that is beyond the bound goes.
pub fn note(txn: Txn, key: &Key, number: u32, past: &Past) -> Txn {
    let path = entry_key(key, number);
    // Where an object is gone nothing else of the transaction tells two writers apart.
    let txn = txn.if_at(path.clone(), 0).put(path, past.write());
    match number.checked_sub(KEPT) {
        Some(old) if old > 0 => txn.delete(entry_key(key, old)),
        _ => txn,
    }
}

/// Forgets the oldest entries where there are more than `entries` or `bytes` of them, down to nine tenths of that;
/// how many it forgot.
pub fn trim(store: &dyn Store, entries: usize, bytes: usize) -> Result<usize, StoreError> {
    let size = |entry: &Entry| entry.key.len() + entry.value.len();
    let mut all: Vec<(u64, usize, String)> = store
        .range(HISTORY, None)?
        .entries
        .into_iter()
        .map(|entry| (entry.modified, size(&entry), entry.key))
        .collect();
    let (mut count, mut total) = (all.len(), all.iter().map(|(_, size, _)| size).sum::<usize>());
    if count <= entries && total <= bytes {
        return Ok(0);
    }
    all.sort_unstable();
    let mut gone = Vec::new();
    for (_, size, key) in all {
        if count <= entries / 10 * 9 && total <= bytes / 10 * 9 {
            break;
        }
        count -= 1;
        total -= size;
        gone.push(key);
    }
    for keys in gone.chunks(AT_ONCE) {
        store.transact(keys.iter().fold(Txn::default(), |txn, key| txn.delete(key.clone())))?;
    }
    Ok(gone.len())
}
