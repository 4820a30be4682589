//! Who may call what: a handler names the right that it needs as the type of an argument.
//!
//! Invariant: only `healthz`, `readyz` and `openapi.json` have no such argument.
//! Not here: whose a token is ([`super::guard`]).

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use mesh_api::error::{ApiError, Reason};
use serde_json::Value;

use super::error::Refused;
use super::guard::Identity;
use crate::auth::table::NoToken;
use crate::auth::{Principal, Role};

/// May read.
pub struct Reader(pub Arc<Principal>);
/// May write objects.
pub struct Writer(pub Arc<Principal>);
/// May do everything.
pub struct Administrator(pub Arc<Principal>);

impl<S: Sync> FromRequestParts<S> for Reader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        allowed(parts, Role::reads, "viewer").map(Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Writer {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        allowed(parts, Role::writes, "editor").map(Self)
    }
}

impl<S: Sync> FromRequestParts<S> for Administrator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        allowed(parts, Role::administers, "admin").map(Self)
    }
}

fn allowed(parts: &Parts, suffices: fn(Role) -> bool, least: &str) -> Result<Arc<Principal>, Refused> {
    let principal = match parts.extensions.get::<Identity>() {
        Some(Identity::Known(principal)) => principal.clone(),
        Some(Identity::Wrong(NoToken::Expired)) => {
            return Err(unknown(
                "the token has expired; an administrator makes another with `meshctl token create`",
            ));
        }
        _ => {
            return Err(unknown(
                "the request has no valid token; use admin.token of the data directory, or `meshctl token create`",
            ));
        }
    };
    if suffices(principal.role) {
        return Ok(principal);
    }
    let (role, accepted) = (principal.role.name(), format!("a token of role {least} or more"));
    let message = format!("a token of role {role} does not allow this; it takes {accepted}");
    Err(ApiError::new(Reason::Forbidden, "", role.into(), accepted).saying(message).into())
}

fn unknown(why: &str) -> Refused {
    let accepted = "Authorization: Bearer TOKEN";
    ApiError::new(Reason::Unauthenticated, "", Value::Null, accepted).saying(why).into()
}
