//! `GET /v1/discover/{namespace}/{service}`: where a service is; with `wait` and `index` when that changes.
//!
//! Not here: which endpoints count (`discover` in `engine`).

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use mesh_api::duration;
use mesh_api::error::{ApiError, Reason};
use serde::Deserialize;
use serde_json::Value;

use super::Site;
use super::caller::Reader;
use super::error::Refused;
use super::extract::{Ask, At};
use crate::stop::stopped;

/// Longest wait.
const WAIT_MAX: Duration = Duration::from_mins(5);

/// What is asked with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Name or number.
    port: Option<String>,
    wait: Option<String>,
    index: Option<String>,
}

pub async fn discover(
    Reader(who): Reader,
    State(site): State<Arc<Site>>,
    At((namespace, service)): At<(String, String)>,
    Ask(Asked { port, wait, index }): Ask<Asked>,
) -> Result<Json<Value>, Refused> {
    let engine = &site.engine;
    let mut applied = engine.follow_applied();
    let mut found = engine.discover(&namespace, &service, port.as_deref())?;
    let (Some(wait), Some(index)) = (wait.map(|text| time(&text)).transpose()?, index) else {
        return Ok(Json(found));
    };
    if found["index"] != index.as_str() {
        return Ok(Json(found));
    }
    let _slot = site.slots.take(&who.token).inspect_err(|_| engine.metrics.watches_refused.inc())?;
    let mut stop = site.stop.clone();
    let end = tokio::time::sleep(wait);
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { break },
            () = &mut end => break,
            () = stopped(&mut stop) => break,
        }
        found = engine.discover(&namespace, &service, port.as_deref())?;
        if found["index"] != index.as_str() {
            break;
        }
    }
    Ok(Json(found))
}

fn time(text: &str) -> Result<Duration, ApiError> {
    let accepted = format!("{} up to 5m", duration::ACCEPTED);
    duration::parse(text)
        .filter(|wait| *wait <= WAIT_MAX)
        .ok_or_else(|| ApiError::new(Reason::OutOfRange, "wait", text.into(), accepted))
}
