//! Who may call what: a handler names the right that it needs as the type of an argument.
//!
//! Invariant: only `healthz` and `readyz` have no such argument.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::{header, request::Parts};
use mesh_api::error::{ApiError, Reason};
use serde_json::Value;

use super::error::Refused;
use crate::auth::{Principal, Role};
use crate::clock::unix_ms;
use crate::engine::Engine;

/// May read.
pub struct Reader;
/// May write objects.
pub struct Writer(pub Principal);
/// May do everything.
pub struct Administrator(pub Principal);

impl<S: Sync> FromRequestParts<S> for Reader
where
    Arc<Engine>: FromRef<S>,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        allowed(parts, &Arc::<Engine>::from_ref(state), Role::reads, "viewer").map(|_| Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Writer
where
    Arc<Engine>: FromRef<S>,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        allowed(parts, &Arc::<Engine>::from_ref(state), Role::writes, "editor").map(Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Administrator
where
    Arc<Engine>: FromRef<S>,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        allowed(parts, &Arc::<Engine>::from_ref(state), Role::administers, "admin").map(Self)
    }
}

fn allowed(
    parts: &Parts,
    engine: &Engine,
    suffices: fn(Role) -> bool,
    least: &str,
) -> Result<Principal, Refused> {
    let bearer = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let Some(principal) = bearer.and_then(|text| engine.tokens.authenticate(text.trim(), unix_ms())) else {
        let error = ApiError::new(Reason::Unauthenticated, "", Value::Null, "Authorization: Bearer TOKEN");
        return Err(error
            .saying("the request has no valid token; use admin.token of the data directory, or `meshctl token create`")
            .into());
    };
    if suffices(principal.role) {
        return Ok(principal);
    }
    let (role, accepted) = (principal.role.name(), format!("a token of role {least} or more"));
    let message = format!("a token of role {role} does not allow this; it takes {accepted}");
    Err(ApiError::new(Reason::Forbidden, "", role.into(), accepted).saying(message).into())
}
