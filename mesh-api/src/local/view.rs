//! What `agent.sock` says of flows and of the kernel's side: part of [`super`].
//!
//! Not here: the socket, who may ask.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Flows that a page holds at most: it fits a packet, whatever the names.
pub const PAGE: usize = 48;

/// Which flows are asked for. Empty words ask for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FlowQuery {
    /// Go on: flows that begin, and flows that end.
    #[serde(default)]
    pub follow: bool,
    /// A workload at either end: `<namespace>/<name>` or `<name>`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workload: String,
    /// A service: `<namespace>/<name>:<port>`, without namespace or port if you like.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// A verdict by its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub verdict: String,
    /// `kernel` or `proxy`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

impl FlowQuery {
    /// Nothing was asked for.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Was this flow asked for?
    pub fn wants(&self, flow: &FlowLine) -> bool {
        let workload = |name: &str| names_match(&self.workload, name);
        (self.workload.is_empty()
            || workload(&flow.source)
            || workload(&flow.destination)
            || workload(&flow.endpoint))
            && (self.service.is_empty() || names_match(&self.service, &flow.destination))
            && (self.verdict.is_empty() || self.verdict == flow.verdict)
            && (self.path.is_empty() || self.path == flow.path)
    }
}

/// Does `wanted`, which may lack namespace and port, name `name`?
pub fn names_match(wanted: &str, name: &str) -> bool {
    let (namespace, rest) = name.split_once('/').unwrap_or(("", name));
    let (wanted_namespace, wanted) = match wanted.split_once('/') {
        Some((namespace, rest)) => (Some(namespace), rest),
        None => (None, wanted),
    };
    let plain = rest.split_once(':').map_or(rest, |(plain, _)| plain);
    wanted_namespace.is_none_or(|wanted| wanted == namespace) && (wanted == rest || wanted == plain)
}

/// Some flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowPage {
    /// [`crate::local::VERSION`].
    pub v: u32,
    /// Was it done?
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Open ones, and ended ones in the order of their ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flows: Vec<FlowLine>,
    /// Ended flows that are missing before this page, because this reader was too slow; some may not have been
    /// asked for.
    #[serde(default)]
    pub lost: u64,
    /// Ended flows whose records found no room in the kernel's ring, since the page before.
    #[serde(default)]
    pub unrecorded: u64,
    /// The last page.
    #[serde(default)]
    pub done: bool,
}

/// One flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLine {
    /// `open`, `ended`, or `failed` (never established).
    pub state: String,
    /// The workload that opened it.
    pub source: String,
    /// What it asked for: a service port, a workload, or `outside`.
    pub destination: String,
    /// The workload that the kernel chose; empty: none, or the proxy chooses.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// The address that it asked for.
    pub address: String,
    /// Application protocol.
    pub protocol: String,
    /// `kernel` or `proxy`.
    pub path: String,
    /// What the kernel decided.
    pub verdict: String,
    /// Seconds from `connect()` to now, or to its end.
    pub seconds: f64,
    /// Payload bytes that the peer has acknowledged.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Smoothed round-trip time, microseconds; 0: not known.
    pub srtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
}

/// The kernel's side of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelStatus {
    /// Its release.
    pub kernel: String,
    /// Where programs and maps are pinned.
    pub pins: String,
    /// Maps of an earlier agent were found and kept.
    pub adopted: bool,
    /// What is attached.
    pub programs: Vec<ProgramStatus>,
    /// What works on this kernel.
    pub features: Vec<FeatureStatus>,
    /// How full the maps are.
    pub maps: Vec<MapStatus>,
    /// What was decided, by verdict.
    pub verdicts: BTreeMap<String, u64>,
}

/// An attached program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Kind of place.
    pub attach: String,
    /// Which.
    pub target: String,
    /// Ids of the links that hold it there; the first 256.
    pub links: Vec<u32>,
    /// Its place among the programs there: `1 of 2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Runs that the kernel has counted.
    pub runs: u64,
    /// Nanoseconds that they took.
    pub run_ns: u64,
}

/// Something that not every kernel can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeatureStatus {
    /// What.
    pub name: String,
    /// Does it work here?
    pub on: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// A map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: String,
    /// Entries; of a ring the bytes that wait. `None`: nobody can count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Room; 0: as much as there are sockets.
    pub capacity: u64,
    /// Kernel memory that it holds, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Why it cannot be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
