//! The authority and the nodes that have joined, over REST: for administrators, what is only looked at for readers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use mesh_api::error::{ApiError, Reason};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::body::Text;
use super::caller::{Administrator, Reader};
use super::error::Refused;
use super::extract::{Ask, At};
use crate::ca::CaError;
use crate::ca::issued::Which;
use crate::ca::office::{Office, OfficeError};
use crate::clock::unix_s;
use crate::engine::Engine;
use crate::engine::members::no_member;

/// Certificates that one answer lists, at most and unasked.
const LISTED_MAX: usize = 10_000;
const LISTED: usize = 1000;

/// Runs what blocks.
async fn with<T: Send + 'static>(
    office: &Arc<Office>,
    call: impl FnOnce(&Office) -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let office = office.clone();
    let done = tokio::task::spawn_blocking(move || call(&office)).await;
    done.map_err(|error| Refused::unavailable(&error.to_string()))?
}

impl From<OfficeError> for Refused {
    fn from(error: OfficeError) -> Self {
        if let OfficeError::Ca(CaError::Refused(cause)) = &error {
            return ApiError::new(Reason::Conflict, "", Value::Null, "the same request, later")
                .saying(cause.clone())
                .into();
        }
        tracing::error!(%error, "the authority failed");
        Self::unavailable(&error.to_string())
    }
}

pub async fn status(_: Reader, State(site): State<Arc<Site>>) -> Result<Json<Value>, Refused> {
    with(&site.office, |office| Ok(Json(office.status(unix_s())))).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<usize>,
}

pub async fn issued(
    _: Reader,
    State(site): State<Arc<Site>>,
    Ask(page): Ask<Page>,
) -> Result<Json<Value>, Refused> {
    let most = page.limit.unwrap_or(LISTED).min(LISTED_MAX);
    with(&site.office, move |office| {
        let (held, valid, forgotten) = office.ledger().counts(unix_s());
        let items = office.ledger().newest(most);
        Ok(Json(json!({ "items": items, "held": held, "valid": valid, "forgotten": forgotten })))
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotate {
    #[serde(default)]
    root: bool,
}

pub async fn rotate(
    Administrator(who): Administrator,
    State(site): State<Arc<Site>>,
    text: Text,
) -> Result<Json<Value>, Refused> {
    let Rotate { root } = text.json("{root?: BOOL}")?;
    tracing::info!(by = %who.token, root, "rotation of the authority's keys");
    with(&site.office, move |office| {
        office.rotate(root, unix_s())?;
        Ok(Json(office.status(unix_s())))
    })
    .await
}

pub async fn revoke(
    Administrator(who): Administrator,
    State(site): State<Arc<Site>>,
    text: Text,
) -> Result<Json<Value>, Refused> {
    let which: Which = text.json("{serial: HEX} or {identity: SPIFFE-ID} or {node: NAME}")?;
    tracing::info!(by = %who.token, ?which, "certificates revoked");
    with(&site.office, move |office| Ok(Json(json!({ "revoked": office.revoke(&which, unix_s())? })))).await
}

pub async fn nodes(_: Reader, State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(json!({ "items": engine.members.list() }))
}

pub async fn revoke_node(
    Administrator(who): Administrator,
    State(site): State<Arc<Site>>,
    At(node): At<String>,
) -> Result<Json<Value>, Refused> {
    let Some(member) = site.engine.revoke_node(node.clone()).await? else {
        return Err(no_member(&node).into());
    };
    tracing::info!(by = %who.token, node, "node revoked");
    with(&site.office, move |office| {
        let revoked = office.revoke(&Which::Node(node), unix_s())?;
        Ok(Json(json!({ "node": member, "revoked": revoked })))
    })
    .await
}
