//! Request bodies: bounded in size, time and depth, and refused in the API's own shape.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use mesh_api::error::{ApiError, Reason};
use mesh_api::resource::{MAX_BYTES, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Refused;

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Largest backup that is taken, and how long it may take to come.
const WHOLE_MAX: usize = 256 << 20;
const WHOLE_TIME: Duration = Duration::from_mins(2);
/// How much of a body that is too large is read and dropped.
const DROP_MAX: usize = 16 << 20;

/// What answers carry beside an object.
const READ_ONLY: [&str; 4] = ["observed", "result", "conditions", "dryRun"];

/// A body of at most [`MAX_BYTES`].
pub struct Text(Vec<u8>);

impl<S: Sync> FromRequest<S> for Text {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        bounded(request, MAX_BYTES, BODY_TIME).await.map(Self)
    }
}

/// A file of at most [`WHOLE_MAX`].
pub struct Whole(pub Vec<u8>);

impl<S: Sync> FromRequest<S> for Whole {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        bounded(request, WHOLE_MAX, WHOLE_TIME).await.map(Self)
    }
}

async fn bounded(request: Request, max: usize, time: Duration) -> Result<Vec<u8>, Refused> {
    match tokio::time::timeout(time, read(request.into_body(), max)).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            let accepted = format!("up to {max} bytes");
            let message = format!("the body is too large or was cut off; accepted: {accepted}");
            let error = ApiError::new(Reason::OutOfRange, "", Value::Null, accepted).saying(message);
            Err(Refused::from(error).with_status(StatusCode::PAYLOAD_TOO_LARGE))
        }
        Err(_) => {
            let accepted = format!("a body within {} s", time.as_secs());
            let error = ApiError::new(Reason::Malformed, "", Value::Null, accepted)
                .saying("the body did not arrive in time");
            Err(Refused::from(error).with_status(StatusCode::REQUEST_TIMEOUT))
        }
    }
}

/// `None`: too large, or cut off. What is too large is read on for a while and dropped, so that a client that
/// sends first and reads then sees the answer and not a reset.
async fn read(body: Body, max: usize) -> Option<Vec<u8>> {
    let (mut stream, mut text, mut total) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(piece) = stream.next().await {
        let piece = piece.ok()?;
        total += piece.len();
        if total <= max {
            text.extend_from_slice(&piece);
        } else if total > max + DROP_MAX {
            return None;
        }
    }
    (total <= max).then_some(text)
}

impl Text {
    /// As an object of the mesh; one that was read here may be written back.
    pub fn resource(&self) -> Result<Resource, Refused> {
        let mut value: Value = self.json("one JSON object")?;
        if let Some(object) = value.as_object_mut() {
            for field in READ_ONLY {
                object.remove(field);
            }
        }
        Ok(Resource::parse(&value)?)
    }

    /// As anything else; nesting is limited by serde_json.
    pub fn json<T: DeserializeOwned>(&self, accepted: &str) -> Result<T, Refused> {
        serde_json::from_slice(&self.0).map_err(|cause| {
            ApiError::new(Reason::Malformed, "", Value::Null, accepted)
                .saying(format!("{cause}; accepted: {accepted}"))
                .into()
        })
    }
}

/// The revision that `If-Match` demands; `If-None-Match: *` demands that there is none (0).
pub fn expected(headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    if headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == b"*") {
        return Ok(Some(0));
    }
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let accepted = "If-Match: \"REVISION\", as metadata.revision shows it";
    text.trim_matches('"')
        .parse()
        .map(Some)
        .map_err(|_| ApiError::new(Reason::BadFormat, "If-Match", text.into(), accepted).into())
}
