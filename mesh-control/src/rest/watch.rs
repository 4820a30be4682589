//! Objects watched over REST: an answer that goes on, as server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `put` | `{revision, object}`: the object as it is now |
//! | `delete` | `{revision, key}`: gone, or not selected any more |
//! | `synced` | `{revision}`: what was there at the beginning has been told |
//! | `error` | `{error}`: the watch ends; for `gone` ask anew without `from` |
//!
//! Without `from` everything comes first, then `synced`, then changes; with it only what changed after that revision.
//! `id` of each event is what `from`, or `Last-Event-ID`, goes on from.
//!
//! Invariants: a reader that is slow costs nothing: changes are read from the store when it has taken those before,
//! and several of one object come as one; where the store has forgotten what it missed, it is told. A watch ends with
//! its token.
//! Not here: what depends on other objects (`observed`, conditions): an event comes when an object is written.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use mesh_api::resource::{Key, Kind, Resource};
use mesh_api::selector::LabelSelector;
use mesh_registry::intent::WriteError;
use mesh_registry::record::{INTENT, REGISTERED, namespace_prefix, parse_key};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Site;
use super::error::Refused;
use super::slots::Slot;
use crate::auth::Principal;
use crate::clock::unix_ms;
use crate::engine::reads::Page;
use crate::stop::stopped;

/// Changes that are read at once.
const BATCH: usize = 256;
/// A sign of life, and a look at the token, this often.
const QUIET: Duration = Duration::from_secs(10);

/// What is watched.
pub struct Watched {
    /// Objects of this kind,
    pub kind: Kind,
    /// of this namespace, or all,
    pub namespace: Option<String>,
    /// of this name, or all,
    pub name: Option<String>,
    /// with these labels.
    pub selector: LabelSelector,
}

struct Watch {
    site: Arc<Site>,
    of: Watched,
    at: u64,
    ready: VecDeque<Bytes>,
    applied: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    token: String,
    ended: bool,
    _slot: Slot,
}

/// Answers with events, from now or after a revision.
pub async fn watch(
    site: Arc<Site>,
    of: Watched,
    from: Option<u64>,
    who: &Principal,
) -> Result<Response, Refused> {
    let slot = site.slots.take(&who.token).inspect_err(|_| site.engine.metrics.watches_refused.inc())?;
    let (applied, stop) = (site.engine.follow_applied(), site.stop.clone());
    let token = who.token.clone();
    let mut watch =
        Watch { site, of, at: 0, ready: VecDeque::new(), applied, stop, token, ended: false, _slot: slot };
    match from {
        Some(from) => {
            watch.at = from;
            watch.pull().await?;
        }
        None => watch.everything(),
    }
    let events = stream::unfold(watch, |mut watch| async move {
        let event = watch.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), watch))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(events)).into_response())
}

impl Watch {
    /// What there is, and that this was it.
    fn everything(&mut self) {
        let Watched { kind, namespace, name, selector } = &self.of;
        // A kind without namespaces has one place.
        let namespace = namespace.as_deref().filter(|_| kind.namespaced());
        let page = Page { namespace, selector, after: None, limit: None };
        let (revision, items, _) = self.site.engine.list(*kind, &page);
        self.at = revision;
        for object in items {
            if name.as_ref().is_none_or(|name| object["metadata"]["name"] == name.as_str()) {
                self.ready.push_back(event(
                    revision,
                    "put",
                    &json!({ "revision": revision, "object": object }),
                ));
            }
        }
        self.ready.push_back(event(revision, "synced", &json!({ "revision": revision })));
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.pull().await {
                Ok(true) => {}
                Ok(false) => {
                    tokio::select! {
                        changed = self.applied.changed() => changed.ok()?,
                        () = tokio::time::sleep(QUIET) => self.quiet(),
                        () = stopped(&mut self.stop) => return None,
                    }
                }
                Err(refused) => {
                    self.ready.push_back(event(self.at, "error", &refused.to_json()));
                    self.ended = true;
                }
            }
        }
    }

    /// Says that it is there, unless its token is no more.
    fn quiet(&mut self) {
        if self.site.engine.tokens.still_good(&self.token, unix_ms()) {
            self.ready.push_back(Bytes::from_static(b": quiet\n\n"));
        } else {
            self.ended = true;
        }
    }

    /// Reads what changed; false: nothing new in the store.
    async fn pull(&mut self) -> Result<bool, Refused> {
        let (at, prefix) = (self.at, self.prefix());
        let read = move |engine: &crate::engine::Engine| {
            engine.store().changes(&prefix, at, BATCH).map_err(WriteError::from)
        };
        let changes = self.site.engine.blocking(read).await?;
        if changes.upto == at {
            return Ok(false);
        }
        let keys: BTreeSet<Key> =
            changes.changes.iter().filter_map(|change| self.wanted(&change.key)).collect();
        // What is told is never older than what it says.
        self.site.engine.applied(changes.upto).await;
        self.at = changes.upto;
        for key in keys {
            let event = self.told(&key);
            self.ready.push_back(event);
        }
        Ok(true)
    }

    fn prefix(&self) -> String {
        let Watched { kind, namespace, .. } = &self.of;
        match kind {
            // Registrations stand elsewhere.
            Kind::Workload => "/".to_owned(),
            Kind::Mesh => namespace_prefix(Kind::Mesh, None),
            kind => namespace_prefix(*kind, namespace.as_deref()),
        }
    }

    fn wanted(&self, stored: &str) -> Option<Key> {
        if !stored.starts_with(INTENT) && !stored.starts_with(REGISTERED) {
            return None;
        }
        let (_, key) = parse_key(stored)?;
        let Watched { kind, namespace, name, .. } = &self.of;
        let of = key.kind == *kind
            && namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && name.as_ref().is_none_or(|name| *name == key.name);
        of.then_some(key)
    }

    fn told(&self, key: &Key) -> Bytes {
        let at = self.at;
        let found = self.site.engine.get(key).filter(|(_, object)| self.selected(object));
        if let Some((_, object)) = found {
            return event(at, "put", &json!({ "revision": at, "object": object }));
        }
        let key = json!({ "kind": key.kind.name(), "namespace": key.namespace, "name": key.name });
        event(at, "delete", &json!({ "revision": at, "key": key }))
    }

    fn selected(&self, object: &Value) -> bool {
        let mut bare = object.clone();
        if let Some(fields) = bare.as_object_mut() {
            fields.remove("observed");
        }
        Resource::parse(&bare).is_ok_and(|object| self.of.selector.matches(&object.metadata.labels))
    }
}

fn event(revision: u64, name: &str, data: &Value) -> Bytes {
    // JSON of serde_json has no line breaks.
    Bytes::from(format!("id: {revision}\nevent: {name}\ndata: {data}\n\n"))
}
