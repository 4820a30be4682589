//! What would become of a request (`explain`): part of [`super`].

use serde::{Deserialize, Serialize};

/// A request that might be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExplainQuery {
    /// The workload of this node that calls: `<namespace>/<name>` or `<name>`.
    pub source: String,
    /// Method.
    pub method: String,
    /// `http://host[:port]/path?query`.
    pub url: String,
    /// `NAME: VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
}

impl ExplainQuery {
    /// Nothing is asked.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What would become of it, decision by decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// In the order in which they are made.
    pub steps: Vec<Step>,
    /// What is decided at other nodes, and has to be asked of the control plane.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Elsewhere>,
}

/// One decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Of what: `name`, `service`, `path`, `route`, `filters`, `backends`, `endpoints`, `transport`, `authorisation`.
    pub what: String,
    /// What was decided, and why.
    pub says: String,
    /// What else there was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<String>,
}

/// A workload of another node that would be called: who may call it is decided there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Elsewhere {
    /// `<namespace>/<name>` of who calls.
    pub source: String,
    /// `<namespace>/<name>` of who is called.
    pub workload: String,
    /// At which port.
    pub port: u16,
    /// The request as it is passed on.
    pub method: String,
    /// Without its query.
    pub path: String,
    /// Its host.
    pub host: String,
    /// `NAME:VALUE`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
}
