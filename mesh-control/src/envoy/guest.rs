//! Who is at the other end of a stream, and of which node type it is: by a token of `meshctl token create --envoy TYPE`,
//! or by a certificate of `meshctl proxy certificate TYPE`.
//!
//! Asked when a stream begins, and from time to time while it lasts.

use std::sync::Arc;

use mesh_api::resource::node_type_of;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::auth::Role;
use crate::ca::peer::Guest as Certified;
use crate::clock::{unix_ms, unix_s};
use crate::engine::Engine;
use crate::tls::Origin;

/// Who may be told what Envoys of a type are told.
#[derive(Clone)]
pub struct Guest {
    /// Which type.
    pub node_type: String,
    proof: Proof,
}

#[derive(Clone)]
enum Proof {
    Token(String),
    Certificate(Arc<Certified>),
}

impl Guest {
    /// Of a call.
    pub fn of(engine: &Engine, origin: Option<&Origin>, metadata: &MetadataMap) -> Result<Self, Status> {
        let bearer = metadata.get("authorization").and_then(|value| value.to_str().ok());
        if let Some(text) = bearer.and_then(|text| text.strip_prefix("Bearer ")) {
            let node_type = of_token(engine, text)?;
            return Ok(Self { node_type, proof: Proof::Token(text.to_owned()) });
        }
        let Some(certified) = origin.and_then(|origin| origin.guest.clone()) else {
            return Err(Status::unauthenticated(
                "neither a token nor a certificate of an Envoy: make one with `meshctl token create --envoy TYPE` \
                 (metadata \"authorization: Bearer TOKEN\") or `meshctl proxy certificate TYPE --csr FILE`",
            ));
        };
        let guest = Self { node_type: certified.node_type.clone(), proof: Proof::Certificate(certified) };
        guest.require(engine)?;
        Ok(guest)
    }

    /// Fails when the token or certificate is no longer good.
    pub fn require(&self, engine: &Engine) -> Result<(), Status> {
        match &self.proof {
            Proof::Token(text) => of_token(engine, text).map(drop),
            Proof::Certificate(certified) if certified.not_after <= unix_s() => {
                Err(Status::unauthenticated("the certificate has ended: connect again with a new one"))
            }
            Proof::Certificate(certified) if engine.members.is_revoked(&certified.serial) => {
                Err(Status::unauthenticated(format!("the certificate {} was revoked", certified.serial)))
            }
            Proof::Certificate(_) => Ok(()),
        }
    }

    /// Fails where a node calls itself something of another type.
    pub fn is(&self, id: &str) -> Result<(), Status> {
        let of = node_type_of(id);
        if of == self.node_type {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "node id {id:?} is of node type {of:?} (up to the first '-'), but its token or certificate is of {:?}: \
             call it {}-NAME, or give it another",
            self.node_type, self.node_type
        )))
    }
}

/// The node type that a token is bound to.
pub fn of_token(engine: &Engine, text: &str) -> Result<String, Status> {
    let Ok(principal) = engine.tokens.authenticate(text, unix_ms()) else {
        return Err(Status::unauthenticated(
            "the token is not known, or not any more: make one with `meshctl token create --envoy TYPE`",
        ));
    };
    if principal.role != Role::Envoy {
        let role = principal.role.name();
        return Err(Status::permission_denied(format!(
            "a token of role {role} is none of an Envoy: make one with `meshctl token create --envoy TYPE`"
        )));
    }
    Ok(principal.node)
}
