//! What policies come to, for who wants to know before somebody else finds out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use serde_json::Value;

use super::caller::Reader;
use super::error::Refused;
use crate::engine::Engine;

/// A connection that might be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    source: String,
    destination: String,
    port: Option<u16>,
}

/// `GET /v1/authz/check?source=…&destination=…[&port=…]`
pub async fn check(
    _: Reader,
    State(engine): State<Arc<Engine>>,
    Query(asked): Query<Asked>,
) -> Result<Json<Value>, Refused> {
    let Asked { source, destination, port } = asked;
    Ok(Json(engine.check_authorization(&source, &destination, port)?))
}
