//! `GET /v1/health/{namespace}/{service}`: each endpoint, how it is and why, and who leaves it out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use mesh_api::resource::{Key, Kind};
use serde_json::Value;

use super::caller::Reader;
use super::error::Refused;
use super::extract::At;
use crate::engine::Engine;

pub async fn get(
    _: Reader,
    State(engine): State<Arc<Engine>>,
    At((namespace, name)): At<(String, String)>,
) -> Result<Json<Value>, Refused> {
    let key = Key::new(Kind::Service, &namespace, &name);
    engine.health_of(&key).map(Json).ok_or_else(|| Refused::from(key.not_found()))
}
