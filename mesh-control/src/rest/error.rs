//! Refusals over HTTP: `{"error": {reason, path, value, accepted, message}}` with the status that fits.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesh_api::error::{ApiError, Reason};
use mesh_registry::intent::WriteError;
use mesh_registry::store::StoreError;
use serde_json::{Value, json};

/// A refusal with its status.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    error: ApiError,
}

impl Refused {
    /// With another status than the reason's own.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The request names something that there is not.
    pub fn not_found(what: &str) -> Self {
        ApiError::new(Reason::NotFound, "", what.into(), "an existing path; see GET /v1/status")
            .saying(format!("{what} does not exist"))
            .into()
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
        };
        Self { status, error }
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
            WriteError::Store(error) => {
                tracing::error!(%error, "the store failed");
                Self::unavailable(&error.to_string())
            }
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.error }))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}
