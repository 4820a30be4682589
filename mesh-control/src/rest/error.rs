//! Refusals over HTTP: `{"error": {reason, path, value, accepted, message}}` with the status that fits.

use std::num::NonZeroU16;
use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesh_api::error::{ApiError, Reason};
use mesh_registry::intent::WriteError;
use mesh_registry::store::StoreError;
use serde_json::{Value, json};

use super::guard::{Refusal, seconds};

/// A refusal with its status.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    error: ApiError,
    /// Seconds after which it may be asked again.
    retry: Option<NonZeroU16>,
}

impl Refused {
    /// With another status than the reason's own.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// As it is told.
    pub fn to_json(&self) -> Value {
        json!({ "error": self.error })
    }

    /// The request names something that there is not.
    pub fn not_found(what: &str) -> Self {
        ApiError::new(Reason::NotFound, "", what.into(), "an existing path; see GET /v1/status")
            .saying(format!("{what} does not exist"))
            .into()
    }

    /// There was too much of it; it may be asked again after `wait`.
    pub fn too_many(why: &str, wait: Duration) -> Self {
        let seconds = seconds(wait);
        let accepted = format!("the same request, {seconds} s later");
        let error = ApiError::new(Reason::TooMany, "", Value::Null, accepted.clone());
        let retry = NonZeroU16::new(u16::try_from(seconds).unwrap_or(u16::MAX));
        Self { retry, ..error.saying(format!("{why}; accepted: {accepted}")).into() }
    }

    /// The server is at fault.
    pub fn unavailable(cause: &str) -> Self {
        ApiError::new(Reason::Unavailable, "", Value::Null, "the same request, later").saying(cause).into()
    }
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        let status = match error.reason {
            Reason::Malformed
            | Reason::UnknownField
            | Reason::UnknownKind
            | Reason::MissingField
            | Reason::WrongType
            | Reason::OutOfRange
            | Reason::BadFormat
            | Reason::NotBuiltYet => StatusCode::BAD_REQUEST,
            Reason::Conflict | Reason::Owned | Reason::Exhausted => StatusCode::CONFLICT,
            Reason::NotFound => StatusCode::NOT_FOUND,
            Reason::Stale => StatusCode::PRECONDITION_FAILED,
            Reason::Unauthenticated => StatusCode::UNAUTHORIZED,
            Reason::Forbidden => StatusCode::FORBIDDEN,
            Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Reason::Gone => StatusCode::GONE,
            Reason::TooMany => StatusCode::TOO_MANY_REQUESTS,
        };
        Self { status, error, retry: None }
    }
}

impl From<WriteError> for Refused {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Refused(error) => error.into(),
            WriteError::Store(StoreError::TooLarge { what }) => {
                ApiError::new(Reason::OutOfRange, "", Value::Null, "less")
                    .saying(format!("{what} is more than the store takes"))
                    .into()
            }
            WriteError::Store(StoreError::Compacted { asked, oldest }) => {
                let accepted = format!("a revision from {oldest} on, or none: then everything comes first");
                let message = format!("revision {asked} is compacted away; accepted: {accepted}");
                ApiError::new(Reason::Gone, "from", asked.into(), accepted).saying(message).into()
            }
            WriteError::Store(StoreError::Future { asked, newest }) => {
                let accepted = format!("a revision up to {newest}");
                let message = format!("revision {asked} is not reached; accepted: {accepted}");
                ApiError::new(Reason::OutOfRange, "from", asked.into(), accepted).saying(message).into()
            }
            WriteError::Store(error) => {
                tracing::error!(%error, "the store failed");
                Self::unavailable(&error.to_string())
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let refusal = Refusal { reason: self.error.reason, message: self.error.message.clone() };
        let mut response = (self.status, Json(json!({ "error": self.error }))).into_response();
        response.extensions_mut().insert(refusal);
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.get().into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}
