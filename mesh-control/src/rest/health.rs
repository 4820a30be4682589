//! `GET /v1/health/{namespace}/{service}`: each endpoint, how it is and why, and who leaves it out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use mesh_api::resource::{Key, Kind};
use serde_json::Value;

use super::caller::Reader;
use super::error::Refused;
use crate::engine::Engine;

pub async fn get(
    _: Reader,
    State(engine): State<Arc<Engine>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Json<Value>, Refused> {
    let key = Key::new(Kind::Service, &namespace, &name);
    engine.health_of(&key).map(Json).ok_or_else(|| Refused::from(key.not_found()))
}
