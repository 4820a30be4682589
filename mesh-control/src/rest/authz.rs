//! What policies come to, for who wants to know before somebody else finds out.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use mesh_api::error::{ApiError, Reason};
use mesh_core::check::Sample;
use serde::Deserialize;
use serde_json::Value;

use super::caller::Reader;
use super::error::Refused;
use super::extract::Ask;
use crate::engine::Engine;

/// A connection that might be.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    source: String,
    destination: String,
    port: Option<u16>,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    /// `NAME: VALUE`, a line each.
    headers: Option<String>,
}

impl Asked {
    fn request(&self) -> Result<Option<Sample>, ApiError> {
        let Self { method, path, host, headers, .. } = self;
        if method.is_none() && path.is_none() && host.is_none() && headers.is_none() {
            return Ok(None);
        }
        let header = |line: &str| {
            let read = line.split_once(':').filter(|(name, _)| !name.is_empty() && name.trim() == *name);
            read.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).ok_or_else(|| {
                ApiError::new(Reason::BadFormat, "headers", line.into(), "NAME: VALUE, a line each")
            })
        };
        let lines = headers.iter().flat_map(|headers| headers.lines());
        Ok(Some(Sample {
            method: method.clone().unwrap_or_else(|| "GET".to_owned()),
            path: path.clone().unwrap_or_else(|| "/".to_owned()),
            host: host.clone().unwrap_or_default(),
            headers: lines.map(header).collect::<Result<_, _>>()?,
        }))
    }
}

/// `GET /v1/authz/check?source=…&destination=…[&port=…][&method=…][&path=…][&host=…][&headers=…]`; with any of the last
/// four a request is asked about, whose method is GET and whose path is / where they are not said.
pub async fn check(
    _: Reader,
    State(engine): State<Arc<Engine>>,
    Ask(asked): Ask<Asked>,
) -> Result<Json<Value>, Refused> {
    let request = asked.request()?;
    let Asked { source, destination, port, .. } = asked;
    Ok(Json(engine.check_authorization(&source, &destination, port, request.as_ref())?))
}
