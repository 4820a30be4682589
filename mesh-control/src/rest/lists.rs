//! Objects over REST, read: one or many, by page and label, and watched.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{Key, Kind};
use mesh_api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::json;

use super::Site;
use super::caller::Reader;
use super::error::Refused;
use super::extract::{Ask, At};
use super::objects::{Place, etag, kind};
use super::watch::{Watched, watch};
use crate::auth::Principal;
use crate::engine::Engine;
use crate::engine::reads::Page;

/// Most objects of a page.
const LIMIT_MAX: usize = 10_000;

type App = State<Arc<Site>>;

/// What a list is asked with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListQuery {
    limit: Option<usize>,
    r#continue: Option<String>,
    label_selector: Option<String>,
    #[serde(default)]
    watch: bool,
    from: Option<u64>,
}

/// What one object is asked with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetQuery {
    #[serde(default)]
    watch: bool,
    from: Option<u64>,
}

pub async fn all(
    Reader(who): Reader,
    State(site): App,
    At(plural): At<String>,
    Ask(query): Ask<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    list(site, &who, kind(&plural)?, None, query, &headers).await
}

pub async fn of_namespace(
    Reader(who): Reader,
    State(site): App,
    At((plural, namespace)): At<(String, String)>,
    Ask(query): Ask<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    list(site, &who, kind(&plural)?, Some(namespace), query, &headers).await
}

async fn list(
    site: Arc<Site>,
    who: &Principal,
    kind: Kind,
    namespace: Option<String>,
    query: ListQuery,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let ListQuery { limit, r#continue, label_selector, watch: watched, from } = query;
    let selector = LabelSelector::parse(label_selector.as_deref().unwrap_or_default())?;
    if watched {
        if limit.is_some() || r#continue.is_some() {
            let error =
                ApiError::new(Reason::Conflict, "limit", json!(limit), "watch without limit and continue");
            return Err(error.into());
        }
        let of = Watched { kind, namespace, name: None, selector };
        return watch(site, of, since(from, headers)?, who).await;
    }
    if limit.is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit)) {
        return Err(ApiError::new(Reason::OutOfRange, "limit", json!(limit), "1..=10000").into());
    }
    let after = r#continue.map(|text| cursor(&text)).transpose()?;
    let page = Page { namespace: namespace.as_deref(), selector: &selector, after, limit };
    let (revision, items, more) = site.engine.list(kind, &page);
    let mut out = json!({ "revision": revision, "items": items });
    if let Some(next) = more {
        out["continue"] = next.into();
    }
    Ok(Json(out).into_response())
}

fn cursor(text: &str) -> Result<(String, String), Refused> {
    let found = text.split_once('/').map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
    found.ok_or_else(|| {
        let accepted = "what `continue` of the page before says";
        ApiError::new(Reason::BadFormat, "continue", text.into(), accepted).into()
    })
}

/// Where a watch goes on: as the query says, or as a client that connects again does.
fn since(from: Option<u64>, headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    let Some(last) = headers.get("last-event-id") else { return Ok(from) };
    let text = last.to_str().unwrap_or_default();
    let accepted = "the revision that `id` of the last event said";
    let read =
        text.parse().map_err(|_| ApiError::new(Reason::BadFormat, "Last-Event-ID", text.into(), accepted));
    Ok(Some(read?))
}

pub async fn one(
    Reader(who): Reader,
    State(site): App,
    At((plural, namespace, name)): Place,
    Ask(query): Ask<GetQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let key = Key::new(kind(&plural)?, &namespace, &name);
    show(site, &who, key, &query, &headers).await
}

pub async fn mesh(
    Reader(who): Reader,
    State(site): App,
    Ask(query): Ask<GetQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    show(site, &who, Key::mesh(), &query, &headers).await
}

async fn show(
    site: Arc<Site>,
    who: &Principal,
    key: Key,
    query: &GetQuery,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    if query.watch {
        let Key { kind, namespace, name } = key;
        let selector = LabelSelector::default();
        let of = Watched { kind, namespace: Some(namespace), name: Some(name), selector };
        return watch(site, of, since(query.from, headers)?, who).await;
    }
    read(&site.engine, &key)
}

fn read(engine: &Engine, key: &Key) -> Result<Response, Refused> {
    let (revision, object) = engine.get(key).ok_or_else(|| Refused::from(key.not_found()))?;
    Ok(([etag(revision)], Json(object)).into_response())
}
