//! What `agent.sock` carries: one JSON message a packet (`SOCK_SEQPACKET`), descriptors beside it.
//!
//! A request is answered by one packet; `flows` by [`FlowPage`]s up to the last one, or until the reader hangs
//! up, `tap` by [`TapPage`]s until then. `enrol` brings the descriptors of a network namespace and of a cgroup directory, `run` that of a
//! namespace; the answers to `snapshot` and `identities` bring a file with the JSON, because a packet is bounded.
//!
//! Not here: the socket itself (mesh-agent, meshctl), who may speak (root only, checked by the agent).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

mod explain;
mod request;
mod view;

pub use explain::{Elsewhere, ExplainQuery, Explanation, Step};
pub use request::{RequestLine, TAP_PAGE, TapPage, TapQuery};
pub use view::{
    FeatureStatus, FlowLine, FlowPage, FlowQuery, KernelStatus, MapStatus, PAGE, ProgramStatus, names_match,
};

/// The version of these messages. Another is refused.
pub const VERSION: u32 = 1;
/// Longest packet, bytes.
pub const MAX_PACKET: usize = 64 * 1024;
/// The socket's file name in the agent's run directory.
pub const SOCKET: &str = "agent.sock";

/// A request. Which fields count depends on `op`; unknown fields are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// [`VERSION`].
    pub v: u32,
    /// `enrol`, `run`, `leave`, `status`, `kernel`, `flows`, `tap`, `explain`, `snapshot`, `identities` or `log`; between two agents `handOver`
    /// and `taken`.
    pub op: String,
    /// Mesh namespace of the workload.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its service account; empty: `default`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its addresses; none: those of its namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// What it serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memberships: Vec<Membership>,
    /// It shares the host's network namespace: known by its cgroup and its ports.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// In the services that it serves: 0, the first, to 15.
    #[serde(default, skip_serializing_if = "is_first")]
    pub priority: u8,
    /// Log filter (`log`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub level: String,
    /// Which flows (`flows`).
    #[serde(default, skip_serializing_if = "FlowQuery::is_all")]
    pub flows: FlowQuery,
    /// Which request (`explain`).
    #[serde(default, skip_serializing_if = "ExplainQuery::is_none")]
    pub explain: ExplainQuery,
    /// Which requests (`tap`).
    #[serde(default, skip_serializing_if = "TapQuery::is_all")]
    pub tap: TapQuery,
    /// For how many milliseconds nothing new is sent to the workload before it leaves (`leave`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drain_ms: u32,
    /// For how many milliseconds the programs' runs are counted (`kernel`); 0: not at all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub measure_ms: u32,
}

// serde passes references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_first(priority: &u8) -> bool {
    *priority == 0
}

/// A service port that a workload serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Membership {
    /// Service in the workload's namespace.
    pub service: String,
    /// Name of its port; empty: its only port.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub port_name: String,
    /// Where the workload listens.
    pub target_port: u16,
    /// Its share; 0 takes no new connections.
    #[serde(default = "one")]
    pub weight: u16,
}

fn one() -> u16 {
    1
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// [`VERSION`].
    pub v: u32,
    /// Was it done?
    pub ok: bool,
    /// Why not, with the remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is not as it should be, though it was done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
    /// The workload (`enrol`, `run`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<LocalWorkload>,
    /// The node (`status`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeStatus>,
    /// The kernel's side (`kernel`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelStatus>,
    /// What would become of a request (`explain`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// An enrolled workload of the agent's node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalWorkload {
    /// Mesh namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Cgroup that it lives in.
    pub cgroup: String,
    /// Did the control plane take it?
    pub accepted: bool,
}

/// An agent's own view of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name of the node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Epoch of the snapshot in force.
    pub epoch: u64,
    /// `<store>/<revision>` of it; empty: nothing was received yet.
    pub revision: String,
    /// In step with a control plane?
    pub connected: bool,
    /// Services and workloads that it knows.
    pub services: usize,
    /// As `services`.
    pub workloads: usize,
    /// Enrolled here.
    pub enrolled: Vec<LocalWorkload>,
    /// What is wrong.
    pub conditions: Vec<String>,
    /// Certificates: the node's own, then those of its workloads' identities.
    #[serde(default)]
    pub identities: Vec<IdentityStatus>,
    /// Identities that did not fit.
    #[serde(default)]
    pub more_identities: usize,
}

/// A certificate of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// `spiffe://…`
    pub identity: String,
    /// Serial number, hexadecimal; empty: it has no certificate yet.
    pub serial: String,
    /// Until its certificate ends; below 0: it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_in_seconds: Option<i64>,
    /// Why there is no newer one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure: String,
}

impl Answer {
    /// Done.
    pub fn ok() -> Self {
        Self { v: VERSION, ok: true, ..Self::default() }
    }

    /// Not done.
    pub fn refused(error: impl Into<String>) -> Self {
        Self { v: VERSION, error: Some(error.into()), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_namespace_or_port_matches_any() {
        for (wanted, same) in [
            ("web", true),
            ("shop/web", true),
            ("web:80", true),
            ("other/web", false),
            ("shop/web:81", false),
        ] {
            assert_eq!(names_match(wanted, "shop/web:80"), same, "{wanted}");
        }
        assert!(names_match("cart", "shop/cart") && !names_match("car", "shop/cart"));
    }

    #[test]
    fn requests_have_the_documented_form() {
        let text = r#"{"v":1,"op":"run","namespace":"shop","name":"cart","serviceAccount":"cart",
            "labels":{"app":"cart"},"memberships":[{"service":"cart","portName":"http","targetPort":8080}]}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(request.memberships[0].weight, 1);
        let again: Request = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
        assert_eq!(again, request);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_str::<Request>(r#"{"v":1,"op":"run","cgroupPath":"/"}"#).is_err());
    }
}
