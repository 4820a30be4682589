//! Tokens over REST: the text is in the answer to the request that made it, and nowhere after.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use mesh_api::duration;
use mesh_api::error::{ApiError, Reason};
use mesh_api::name::is_subdomain;
use mesh_api::resource::NODE_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::body::Text;
use super::caller::Administrator;
use super::error::Refused;
use super::extract::At;
use super::guard::Did;
use crate::auth::Role;
use crate::auth::token::{Grant, Minted, TokenRecord};
use crate::clock::unix_ms;
use crate::engine::Engine;

/// Most grants of one token.
const GRANTS_MAX: usize = 1024;
/// Longest name of a token, in bytes.
const NAME_MAX: usize = 64;
const ACCEPTED: &str = "{role: admin | editor | viewer, name?: TEXT, ttl?: DURATION} or \
                        {role: node, name?: TEXT, node: NAME, allow: [NAMESPACE/SERVICEACCOUNT, …], ttl?: DURATION, singleUse?: BOOL} or \
                        {role: envoy, name?: TEXT, node: NODE TYPE, ttl?: DURATION}";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Create {
    role: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    allow: Vec<String>,
    ttl: Option<String>,
    #[serde(default)]
    single_use: bool,
}

impl Create {
    fn record(&self, minted: &Minted, now_ms: u64) -> Result<TokenRecord, ApiError> {
        let refuse = |path: &str, value: Value, accepted: &str| {
            Err(ApiError::new(Reason::BadFormat, path, value, accepted))
        };
        let Some(role) = Role::parse(&self.role) else {
            return refuse("role", self.role.as_str().into(), "admin, editor, viewer, node, envoy");
        };
        let of_node = role == Role::Node;
        if self.name.len() > NAME_MAX || self.name.chars().any(char::is_control) {
            return refuse("name", self.name.as_str().into(), "up to 64 bytes without control characters");
        }
        if of_node && !is_subdomain(&self.node) {
            return refuse("node", self.node.as_str().into(), "the node's name, a DNS subdomain");
        }
        if of_node && !(1..=GRANTS_MAX).contains(&self.allow.len()) {
            return refuse("allow", self.allow.len().into(), "1..=1024 grants NAMESPACE/SERVICEACCOUNT");
        }
        if role == Role::Envoy && !(NODE_TYPE.holds)(&self.node) {
            return refuse("node", self.node.as_str().into(), NODE_TYPE.accepted);
        }
        let names_none = (self.node.is_empty() || role == Role::Envoy) && self.allow.is_empty();
        if !of_node && !names_none {
            return refuse("node", self.node.as_str().into(), "no node and no grants with this role");
        }
        if !of_node && self.single_use {
            return refuse("singleUse", true.into(), "no singleUse with this role");
        }
        let grants: Result<Vec<Grant>, ApiError> = self
            .allow
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let accepted = "NAMESPACE/SERVICEACCOUNT or NAMESPACE/*";
                text.parse().map_err(|cause: String| {
                    let path = format!("allow[{i}]");
                    ApiError::new(Reason::BadFormat, path, text.as_str().into(), accepted).saying(cause)
                })
            })
            .collect();
        let expires_ms = match &self.ttl {
            None => None,
            Some(text) => match duration::parse(text) {
                Some(ttl) if !ttl.is_zero() => Some(now_ms.saturating_add(ttl.as_millis() as u64)),
                _ => return refuse("ttl", text.as_str().into(), duration::ACCEPTED),
            },
        };
        Ok(TokenRecord {
            id: minted.id.clone(),
            name: self.name.clone(),
            hash: minted.hash.clone(),
            role,
            node: self.node.clone(),
            grants: grants?,
            created_ms: now_ms,
            expires_ms,
            single_use: self.single_use,
            used_ms: None,
        })
    }
}

pub async fn create(
    Administrator(who): Administrator,
    State(site): State<Arc<Site>>,
    text: Text,
) -> Result<(StatusCode, Extension<Did>, Json<Value>), Refused> {
    let create: Create = text.json(ACCEPTED)?;
    let minted =
        Minted::new().map_err(|_| Refused::unavailable("the system gives no random numbers; try again"))?;
    let record = create.record(&minted, unix_ms())?;
    let (id, role) = (record.id.clone(), record.role);
    site.engine.add_token(record).await?;
    let token = if role == Role::Node {
        minted.join_text(&site.office.authority.live().fingerprint())
    } else {
        minted.api_text()
    };
    tracing::info!(by = %who.token, token = %id, role = role.name(), "token made");
    let object = format!("token {id} of role {}", role.name());
    let did = Did { what: "created".to_owned(), object, revision: 0 };
    Ok((StatusCode::CREATED, Extension(did), Json(json!({ "id": id, "role": role, "token": token }))))
}

pub async fn list(_: Administrator, State(engine): State<Arc<Engine>>) -> Json<Value> {
    let now = unix_ms();
    let items: Vec<Value> = engine
        .tokens
        .list()
        .into_iter()
        .map(|record| {
            let left = record.expires_ms.map(|end| (end as i64 - now as i64) / 1000);
            json!({
                "id": record.id,
                "name": record.name,
                "role": record.role,
                "node": record.node,
                "grants": record.grants,
                "createdMs": record.created_ms,
                "expiresInSeconds": left,
                "singleUse": record.single_use,
                "used": record.used_ms.is_some(),
            })
        })
        .collect();
    Json(json!({ "items": items }))
}

pub async fn revoke(
    Administrator(who): Administrator,
    State(engine): State<Arc<Engine>>,
    At(id): At<String>,
) -> Result<Json<Value>, Refused> {
    if !engine.revoke_token(id.clone()).await? {
        return Err(Refused::not_found(&format!("token {id}")));
    }
    tracing::info!(by = %who.token, token = %id, "token revoked");
    Ok(Json(json!({})))
}
