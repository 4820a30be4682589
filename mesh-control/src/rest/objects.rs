//! Objects over REST: read, write, remove, take back, and the heartbeat of leased workloads.
//!
//! Answers to writes carry the stored object, the conditions that deserve attention, and in
//! `Server-Timing` how long the commit (fsync included) took. With `?dryRun=true` nothing is written: the answer is
//! what it would be, without conditions.
//! Not here: lists and watches ([`super::lists`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
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
use super::extract::{Ask, At, Dry};
use super::guard::Did;
use crate::auth::Principal;
use crate::engine::Engine;
use crate::engine::writes::Manner;

/// Shortest and longest lease that the API takes.
const LEASE_MIN: Duration = Duration::from_secs(1);
const LEASE_MAX: Duration = Duration::from_hours(24);

type App = State<Arc<Engine>>;
/// Plural, namespace, name.
pub type Place = At<(String, String, String)>;

/// `?lease=30s&dryRun=true`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PutQuery {
    lease: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// How a request asks to write.
fn manner(who: &Principal, headers: &HeaderMap, dry_run: bool) -> Result<Manner, Refused> {
    Ok(Manner { expect: expected(headers)?, dry_run, ..Manner::rest(who.by()) })
}

pub async fn put(
    Writer(who): Writer,
    State(engine): App,
    At((plural, namespace, name)): Place,
    Ask(PutQuery { lease, dry_run }): Ask<PutQuery>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    let (key, resource) = (Key::new(kind(&plural)?, &namespace, &name), text.resource()?);
    if resource.key() != key {
        return Err(mismatch(&key, &resource));
    }
    let Some(lease) = lease else {
        return write(&engine, manner(&who, &headers, dry_run)?, resource).await;
    };
    let ttl = lease_time(&key, &lease)?;
    if dry_run {
        let error = ApiError::new(Reason::Conflict, "dryRun", true.into(), "dryRun without lease");
        return Err(error.into());
    }
    let lease = LeaseRef::of_workload(&key, ttl);
    let start = Instant::now();
    let written = engine.register(Owner::rest(), resource, lease.clone()).await?;
    let took = start.elapsed();
    // Saying it again is a sign of life, as is the first time.
    engine.heartbeat_workload(&key);
    tracing::info!(token = %who.token, %key, revision = written.revision, lease = ?ttl, "registered");
    Ok(answer(&engine, written, took, false).await)
}

pub async fn put_mesh(
    Writer(who): Writer,
    State(engine): App,
    Ask(Dry { dry_run }): Ask<Dry>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    let resource = text.resource()?;
    if resource.key() != Key::mesh() {
        return Err(mismatch(&Key::mesh(), &resource));
    }
    write(&engine, manner(&who, &headers, dry_run)?, resource).await
}

pub async fn apply(
    Writer(who): Writer,
    State(engine): App,
    Ask(Dry { dry_run }): Ask<Dry>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    write(&engine, manner(&who, &headers, dry_run)?, text.resource()?).await
}

async fn write(engine: &Arc<Engine>, manner: Manner, resource: Resource) -> Result<Response, Refused> {
    let (key, start, token, dry_run) = (resource.key(), Instant::now(), manner.by.id.clone(), manner.dry_run);
    let written = engine.put(manner, resource).await?;
    let took = start.elapsed();
    if !dry_run {
        tracing::info!(token, %key, revision = written.revision, created = written.created, "applied");
    }
    Ok(answer(engine, written, took, dry_run).await)
}

async fn answer(engine: &Engine, written: Written, took: Duration, dry_run: bool) -> Response {
    let Written { resource, created, changed, revision } = written;
    let key = resource.key();
    let conditions = if dry_run { Vec::new() } else { engine.problems(&key, revision).await };
    let status = if created && !dry_run { StatusCode::CREATED } else { StatusCode::OK };
    let result = match (created, changed) {
        (true, _) => "created",
        (false, true) => "updated",
        (false, false) => "unchanged",
    };
    let mut object = resource.to_json();
    object["result"] = result.into();
    object["conditions"] = json!(conditions);
    if dry_run {
        object["dryRun"] = true.into();
    }
    let timing = format!("commit;dur={:.3}", took.as_secs_f64() * 1e3);
    let timing = HeaderValue::try_from(timing).unwrap_or(HeaderValue::from_static(""));
    let headers =
        [etag(resource.metadata.revision), (header::HeaderName::from_static("server-timing"), timing)];
    let mut response = (status, headers, Json(object)).into_response();
    let did = Did { what: result.to_owned(), object: key.to_string(), revision };
    response.extensions_mut().insert(did);
    response
}

pub async fn delete(
    Writer(who): Writer,
    State(engine): App,
    At((plural, namespace, name)): Place,
    Ask(Dry { dry_run }): Ask<Dry>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let key = Key::new(kind(&plural)?, &namespace, &name);
    if !key.kind.namespaced() {
        return Err(Refused::from(
            ApiError::new(Reason::NotFound, "", plural.into(), "GET or PUT /v1/mesh")
                .saying("the Mesh cannot be removed; change it with PUT /v1/mesh"),
        ));
    }
    let revision = engine.delete(manner(&who, &headers, dry_run)?, key.clone()).await?;
    let did = Did { what: "deleted".to_owned(), object: key.to_string(), revision };
    if dry_run {
        return Ok((Json(json!({ "revision": revision, "dryRun": true }))).into_response());
    }
    tracing::info!(token = %who.token, %key, revision, "deleted");
    engine.applied(revision).await;
    let mut response = Json(json!({ "revision": revision })).into_response();
    response.extensions_mut().insert(did);
    Ok(response)
}

pub async fn heartbeat(
    _: Writer,
    State(engine): App,
    At((plural, namespace, name)): Place,
) -> Result<Json<Value>, Refused> {
    let key = Key::new(kind(&plural)?, &namespace, &name);
    if engine.heartbeat_workload(&key) {
        return Ok(Json(json!({})));
    }
    let accepted = "a Workload that was PUT with ?lease=";
    let error = ApiError::new(Reason::NotFound, "", name.into(), accepted);
    Err(error.saying(format!("{key} has no lease of its own: register it again with {accepted}")).into())
}

pub async fn history(_: Reader, State(engine): App, At(place): Place) -> Result<Json<Value>, Refused> {
    past(&engine, key_of(&place)?).await
}

pub async fn history_of_mesh(_: Reader, State(engine): App) -> Result<Json<Value>, Refused> {
    past(&engine, Key::mesh()).await
}

async fn past(engine: &Arc<Engine>, key: Key) -> Result<Json<Value>, Refused> {
    Ok(Json(json!({ "items": engine.history(key).await? })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Back {
    revision: u64,
}

pub async fn roll_back(
    who: Writer,
    State(engine): App,
    At(place): Place,
    Ask(dry): Ask<Dry>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    back(&engine, &who.0, key_of(&place)?, dry, &headers, &text).await
}

pub async fn roll_mesh_back(
    who: Writer,
    State(engine): App,
    Ask(dry): Ask<Dry>,
    headers: HeaderMap,
    text: Text,
) -> Result<Response, Refused> {
    back(&engine, &who.0, Key::mesh(), dry, &headers, &text).await
}

async fn back(
    engine: &Arc<Engine>,
    who: &Principal,
    key: Key,
    Dry { dry_run }: Dry,
    headers: &HeaderMap,
    text: &Text,
) -> Result<Response, Refused> {
    let Back { revision } = text.json("{revision: INTEGER}, as the history shows it")?;
    let start = Instant::now();
    let written = engine.roll_back(manner(who, headers, dry_run)?, key.clone(), revision).await?;
    if !dry_run {
        tracing::info!(token = %who.token, %key, to = revision, revision = written.revision, "rolled back");
    }
    Ok(answer(engine, written, start.elapsed(), dry_run).await)
}

fn key_of((plural, namespace, name): &(String, String, String)) -> Result<Key, Refused> {
    Ok(Key::new(kind(plural)?, namespace, name))
}

pub fn kind(plural: &str) -> Result<Kind, Refused> {
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

pub fn etag(revision: u64) -> (header::HeaderName, HeaderValue) {
    let value = HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"\""));
    (header::ETAG, value)
}
