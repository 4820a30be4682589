//! What administrators keep: backups, and the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use mesh_api::error::{ApiError, Reason};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::body::Whole;
use super::caller::Administrator;
use super::error::Refused;
use super::extract::Ask;
use super::guard::newest;

/// Lines of the audit log that one answer has at most, and unasked.
const LINES_MAX: usize = 10_000;
const LINES: usize = 100;

pub async fn backup(_: Administrator, State(site): State<Arc<Site>>) -> Result<Response, Refused> {
    let file = site.engine.backup().await?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], file).into_response())
}

pub async fn restore(
    Administrator(who): Administrator,
    State(site): State<Arc<Site>>,
    Whole(file): Whole,
) -> Result<Json<Value>, Refused> {
    let (entries, revision) = site.engine.restore(who.by(), file).await?;
    tracing::info!(by = %who.token, entries, revision, "restored from a backup");
    site.engine.applied(revision).await;
    Ok(Json(json!({ "entries": entries, "revision": revision })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    limit: Option<usize>,
}

pub async fn audit(
    _: Administrator,
    State(site): State<Arc<Site>>,
    Ask(Lines { limit }): Ask<Lines>,
) -> Result<Json<Value>, Refused> {
    let limit = limit.unwrap_or(LINES);
    if !(1..=LINES_MAX).contains(&limit) {
        return Err(ApiError::new(Reason::OutOfRange, "limit", limit.into(), "1..=10000").into());
    }
    let read = move || newest(&site, limit);
    let lines =
        tokio::task::spawn_blocking(read).await.map_err(|e| Refused::unavailable(&e.to_string()))??;
    Ok(Json(json!({ "items": lines })))
}
