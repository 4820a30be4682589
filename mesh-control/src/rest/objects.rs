//! Objects over REST: read, write, remove, and the heartbeat of leased workloads.
//!
//! Answers to writes carry the stored object, the conditions that deserve attention, and in
//! `Server-Timing` how long the commit (fsync included) took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesh_api::duration;
use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{Key, Kind, Resource};
use mesh_registry::intent::Written;
use mesh_registry::source::{LeaseRef, Owner};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Text, expected};
use super::caller::{Reader, Writer};
use super::error::Refused;
use crate::engine::Engine;

/// Shortest and longest lease that the API takes.
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_hours(24);

type App = State<Arc<Engine>>;

/// `?lease=30s`
#[derive(Deserialize)]
pub struct PutQuery {
    lease: Option<String>,
}

pub async fn list(_: Reader, State(engine): App, Path(plural): Path<String>) -> Result<Json<Value>, Refused> {
    Ok(items(&engine, kind(&plural)?, None))
}

pub async fn list_namespace(
    _: Reader,
    State(engine): App,
    Path((plural, namespace)): Path<(String, String)>,
) -> Result<Json<Value>, Refused> {
    Ok(items(&engine, kind(&plural)?, Some(&namespace)))
}

fn items(engine: &Engine, kind: Kind, namespace: Option<&str>) -> Json<Value> {
    let (revision, items) = engine.list(kind, namespace);
    Json(json!({ "revision": revision, "items": items }))
}

pub async fn get(
    _: Reader,
    State(engine): App,
    Path((plural, namespace, name)): Path<(String, String, String)>,
) -> Result<Response, Refused> {
    read(&engine, &Key::new(kind(&plural)?, &namespace, &name))
}

pub async fn get_mesh(_: Reader, State(engine): App) -> Result<Response, Refused> {
    read(&engine, &Key::mesh())
}

fn read(engine: &Engine, key: &Key) -> Result<Response, Refused> {
    let (revision, object) = engine.get(key).ok_or_else(|| Refused::from(key.not_found()))?;
    Ok(([etag(revision)], Json(object)).into_response())
}

pub async fn put(
    Writer(who): Writer,
    State(engine): App,
    Path((plural, namespace, name)): Path<(String, String, String)>,
    Query(query): Query<PutQuery>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    let (key, resource) = (Key::new(kind(&plural)?, &namespace, &name), text.resource()?);
    if resource.key() != key {
        return Err(mismatch(&key, &resource));
    }
    let Some(lease) = query.lease else {
        return write(&engine, &who.token, resource, expected(&headers)?).await;
    };
    let ttl = lease_time(&key, &lease)?;
    let lease = LeaseRef::of_workload(&key, ttl);
    let start = Instant::now();
    let written = engine.register(Owner::rest(), resource, lease.clone()).await?;
    let took = start.elapsed();
    // Saying it again is a sign of life, as is the first time.
    engine.heartbeat_workload(&key);
    tracing::info!(token = %who.token, %key, revision = written.revision, lease = ?ttl, "registered");
    Ok(answer(&engine, written, took).await)
}

pub async fn put_mesh(
    Writer(who): Writer,
    State(engine): App,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    let resource = text.resource()?;
    if resource.key() != Key::mesh() {
        return Err(mismatch(&Key::mesh(), &resource));
    }
    write(&engine, &who.token, resource, expected(&headers)?).await
}

pub async fn apply(
    Writer(who): Writer,
    State(engine): App,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    write(&engine, &who.token, text.resource()?, expected(&headers)?).await
}

async fn write(
    engine: &Arc<Engine>,
    token: &str,
    resource: Resource,
    expect: Option<u64>,
) -> Result<Response, Refused> {
    let key = resource.key();
    let start = Instant::now();
    let written = engine.put(resource, expect).await?;
    let took = start.elapsed();
    tracing::info!(token, %key, revision = written.revision, created = written.created, "applied");
    Ok(answer(engine, written, took).await)
}

async fn answer(engine: &Engine, written: Written, took: Duration) -> Response {
    let Written { resource, created, changed, revision } = written;
    let key = resource.key();
    let conditions = engine.problems(&key, revision).await;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let result = match (created, changed) {
        (true, _) => "created",
        (false, true) => "updated",
        (false, false) => "unchanged",
    };
    let mut object = resource.to_json();
    object["result"] = result.into();
    object["conditions"] = json!(conditions);
    let timing = format!("commit;dur={:.3}", took.as_secs_f64() * 1e3);
    let timing = HeaderValue::try_from(timing).unwrap_or(HeaderValue::from_static(""));
    let headers =
        [etag(resource.metadata.revision), (header::HeaderName::from_static("server-timing"), timing)];
    (status, headers, Json(object)).into_response()
}

pub async fn delete(
    Writer(who): Writer,
    State(engine): App,
    Path((plural, namespace, name)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refused> {
    let key = Key::new(kind(&plural)?, &namespace, &name);
    if !key.kind.namespaced() {
        return Err(Refused::from(
            ApiError::new(Reason::NotFound, "", plural.into(), "GET or PUT /v1/mesh")
                .saying("the Mesh cannot be removed; change it with PUT /v1/mesh"),
        ));
    }
    let revision = engine.delete(key.clone(), expected(&headers)?).await?;
    tracing::info!(token = %who.token, %key, revision, "deleted");
    engine.applied(revision).await;
    Ok(Json(json!({ "revision": revision })))
}

pub async fn heartbeat(
    _: Writer,
    State(engine): App,
    Path((plural, namespace, name)): Path<(String, String, String)>,
) -> Result<Json<Value>, Refused> {
    let key = Key::new(kind(&plural)?, &namespace, &name);
    if engine.heartbeat_workload(&key) {
        return Ok(Json(json!({})));
    }
    let accepted = "a Workload that was PUT with ?lease=";
    let error = ApiError::new(Reason::NotFound, "", name.into(), accepted);
    Err(error.saying(format!("{key} has no lease of its own: register it again with {accepted}")).into())
}

fn kind(plural: &str) -> Result<Kind, Refused> {
    Kind::from_plural(plural).ok_or_else(|| {
        let known = Kind::ALL.map(Kind::plural).join(", ");
        Refused::from(
            ApiError::new(Reason::UnknownKind, "", plural.into(), known.clone())
                .saying(format!("/v1/{plural} is not known; kinds are {known}")),
        )
        .with_status(StatusCode::NOT_FOUND)
    })
}

fn mismatch(key: &Key, resource: &Resource) -> Refused {
    let sent = resource.key();
    ApiError::new(Reason::BadFormat, "metadata.name", sent.to_string().into(), key.to_string())
        .saying(format!("the URL names {key}, the object {sent}: they must be the same"))
        .into()
}

fn lease_time(key: &Key, text: &str) -> Result<Duration, Refused> {
    if key.kind != Kind::Workload {
        let error = ApiError::new(Reason::OutOfRange, "lease", text.into(), "a Workload");
        return Err(error.saying(format!("{} has no lease; only a Workload has", key.kind)).into());
    }
    let accepted = format!("{} in 1s..=24h", duration::ACCEPTED);
    duration::parse(text)
        .filter(|ttl| (LEASE_MIN..=LEASE_MAX).contains(ttl))
        .ok_or_else(|| ApiError::new(Reason::OutOfRange, "lease", text.into(), accepted).into())
}

fn etag(revision: u64) -> (header::HeaderName, HeaderValue) {
    let value = HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"\""));
    (header::ETAG, value)
}
