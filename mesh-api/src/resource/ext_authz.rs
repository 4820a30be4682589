//! `Mesh.spec.extAuthz`: services that decide about requests, by Envoy's protocol `envoy.service.auth.v3`.
//!
//! An `AuthorizationPolicy` of action `custom` names one. Not here: who is asked when (mesh-core's authorise), the
//! question itself (mesh-agent).

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::DEFAULT_NAMESPACE;
use crate::duration;
use crate::error::ApiError;
use crate::name::LABEL;
use crate::walk::At;

/// Most providers of a mesh.
pub(super) const MAX_EXT_AUTHZ: usize = 16;
/// How long an answer may take where nothing is said.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A service that decides about requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtAuthz {
    /// By which policies name it.
    pub name: String,
    /// Who answers.
    pub service: ExtAuthzService,
    /// How long an answer may take.
    #[serde(serialize_with = "as_text")]
    pub timeout: Duration,
    /// What becomes of requests while nobody answers.
    pub on_failure: OnFailure,
}

/// A port of a service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtAuthzService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The service's port.
    pub port: u16,
}

/// What becomes of requests while nobody answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// They are refused.
    #[default]
    Deny,
    /// They are let in, and counted.
    Allow,
}

fn as_text<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&duration::format(*time))
}

impl ExtAuthz {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let unbuilt = ["includeRequestBody", "includeHeaders", "pathPrefix", "statusOnError"];
        let fields = at.object(&["name", "service", "timeout", "onFailure"], &unbuilt)?;
        let on_failure = [("deny", OnFailure::Deny), ("allow", OnFailure::Allow)];
        Ok(Self {
            name: fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            service: ExtAuthzService::read(
                &fields.need("service", "an object with namespace, name and port")?,
            )?,
            timeout: fields
                .read("timeout", |at| at.duration(Duration::from_millis(1)..=Duration::from_mins(1)))?
                .unwrap_or(TIMEOUT),
            on_failure: fields.read("onFailure", |at| at.one_of(&on_failure, &[]))?.unwrap_or_default(),
        })
    }
}

impl ExtAuthzService {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["namespace", "name", "port"], &[])?;
        let namespace = fields.read("namespace", |at| at.checked(&LABEL))?;
        Ok(Self {
            namespace: namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
            name: fields.need("name", LABEL.accepted)?.checked(&LABEL)?,
            port: fields.need("port", "a port of the service: 1..=65535")?.port()?,
        })
    }
}
