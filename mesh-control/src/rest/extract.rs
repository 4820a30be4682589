//! Parts of paths and queries; what is wrong with them is refused in the API's own shape.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use mesh_api::error::{ApiError, Reason};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Refused;

/// Named parts of the path.
pub struct At<T>(pub T);
/// Fields of the query.
pub struct Ask<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(found)) => Ok(Self(found)),
            Err(cause) => Err(refused("path", parts.uri.path(), &cause.to_string())),
        }
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Ask<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(found)) => Ok(Self(found)),
            Err(cause) => {
                let detail = std::error::Error::source(&cause).map_or(cause.to_string(), ToString::to_string);
                Err(refused("query", parts.uri.query().unwrap_or_default(), &detail))
            }
        }
    }
}

fn refused(what: &str, value: &str, cause: &str) -> Refused {
    let accepted = "what /openapi.json says of it";
    ApiError::new(Reason::BadFormat, what, Value::from(value), accepted)
        .saying(format!("the {what} is not accepted: {cause}; accepted: {accepted}"))
        .into()
}

/// `?dryRun=true` of writes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dry {
    /// Say what would be written, and write nothing.
    #[serde(default)]
    pub dry_run: bool,
}
