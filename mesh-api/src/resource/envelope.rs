//! Metadata, status and conditions: the same for every kind.
//!
//! Not here: who sets them (`Resource::admitted`; mesh-registry derives conditions).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::observed::WorkloadHealth;
use super::{DEFAULT_NAMESPACE, Kind};
use crate::error::{ApiError, Reason};
use crate::name::{LABEL, LABEL_KEY, LABEL_VALUE, SUBDOMAIN};
use crate::walk::At;

/// Most labels of an object, and most pairs of a selector.
pub(super) const MAX_LABELS: usize = 64;

/// Names and labels, and what the server set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name, unique by kind and namespace.
    pub name: String,
    /// Namespace; empty for kinds without.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Labels, which selectors match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Set by the server: random, of this object and none before it under the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Set by the server: the store's revision of the last write; 0: not stored.
    #[serde(skip_serializing_if = "is_zero")]
    pub revision: u64,
    /// Set by the server: creation in Unix milliseconds; 0: not stored.
    #[serde(skip_serializing_if = "is_zero")]
    pub created_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What was observed or allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Virtual addresses that were allocated from the mesh's pool.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// How a workload is, as its node's agent found it; `None`: nobody has said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<WorkloadHealth>,
    /// What holds of the object.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One thing that holds, or does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// What, as `ResolvedRefs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    #[serde(serialize_with = "as_word")]
    pub status: bool,
    /// Why, for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
fn as_word<S: serde::Serializer>(status: &bool, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(if *status { "True" } else { "False" })
}

impl Condition {
    /// From its parts.
    pub fn new(kind: &str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), status, reason: reason.to_owned(), message: message.into() }
    }
}

impl Metadata {
    pub(super) fn read(at: &At<'_>, kind: Kind) -> Result<Self, ApiError> {
        let fields = at.object(
            &["name", "namespace", "labels", "uid", "revision", "createdMs"],
            &["annotations", "generateName"],
        )?;
        let form = if kind == Kind::Service { LABEL } else { SUBDOMAIN };
        let name_at = fields.need("name", form.accepted)?;
        let name = name_at.checked(&form)?;
        let namespace = match fields.get("namespace") {
            // A Mesh read back, or written with kubectl's habits.
            None if !kind.namespaced() => String::new(),
            Some(at) if !kind.namespaced() => {
                return Err(at.refuse(Reason::Conflict, "no namespace: there is one Mesh"));
            }
            None => DEFAULT_NAMESPACE.to_owned(),
            Some(at) => at.checked(&LABEL)?,
        };
        if kind == Kind::Mesh && name != "mesh" {
            return Err(name_at.refuse(Reason::OutOfRange, "mesh: there is one Mesh, by this name"));
        }
        Ok(Self {
            name,
            namespace,
            labels: fields.read("labels", |at| labels(&at))?.unwrap_or_default(),
            uid: fields.read("uid", |at| at.checked(&SUBDOMAIN))?,
            revision: fields.read("revision", |at| at.integer(0..=u64::MAX))?.unwrap_or(0),
            created_ms: fields.read("createdMs", |at| at.integer(0..=u64::MAX))?.unwrap_or(0),
        })
    }
}

/// Labels, or a selector.
pub(super) fn labels(at: &At<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let mut out = BTreeMap::new();
    for (key, at) in at.entries(MAX_LABELS)? {
        if !(LABEL_KEY.holds)(key) {
            return Err(at.refuse(Reason::BadFormat, LABEL_KEY.accepted));
        }
        out.insert(key.to_owned(), at.checked(&LABEL_VALUE)?);
    }
    Ok(out)
}

impl Status {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["vips", "health", "conditions"], &[])?;
        let vips = fields.each("vips", 0..=16, |at| at.parsed("an IP address", |text| text.parse().ok()))?;
        let conditions = fields.each("conditions", 0..=256, |at| {
            let fields = at.object(&["type", "status", "reason", "message"], &[])?;
            let text = |name: &str| Ok(fields.need(name, "text")?.text("text")?.to_owned());
            let status = fields.need("status", "True, False")?;
            Ok(Condition {
                kind: text("type")?,
                status: status.one_of(&[("True", true), ("False", false)], &[])?,
                reason: text("reason")?,
                message: text("message")?,
            })
        })?;
        let health = fields.read("health", |at| WorkloadHealth::read(&at))?;
        Ok(Self { vips, health, conditions })
    }
}
