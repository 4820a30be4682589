//! Where a workload runs, and which endpoints of a service come first.
//!
//! Not here: how the load is split (mesh-core's locality), where a node is (its agent says so).

use serde::Serialize;

use crate::error::{ApiError, Reason};
use crate::name::LABEL_VALUE;
use crate::walk::At;

/// Highest number of a priority.
pub const PRIORITY_MAX: u8 = 15;
/// Least and most of `overprovisioningPercent`.
const OVERPROVISIONING: std::ops::RangeInclusive<u64> = 100..=10_000;
/// Envoy's.
const OVERPROVISIONING_DEFAULT: u16 = 140;

/// Where a workload runs. Empty: nobody has said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Locality {
    /// Of several zones.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// What fails together, within its region.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
}

impl Locality {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["region", "zone"], &["subzone", "subZone"])?;
        let name = |field| fields.read(field, |at| at.checked(&LABEL_VALUE)).map(Option::unwrap_or_default);
        Ok(Self { region: name("region")?, zone: name("zone")? })
    }
}

/// Which endpoints come first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityPolicy {
    /// Scopes that come before what is outside them, the narrowest first; none: priorities alone.
    pub prefer: Vec<Scope>,
    /// What becomes of what they can't carry.
    pub mode: LocalityMode,
    /// How much more than its share what is left of a level can carry, percent.
    pub overprovisioning_percent: u16,
}

/// What a client and an endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// The node.
    Node,
    /// Region and zone.
    Zone,
    /// The region.
    Region,
}

/// What becomes of connections that what is preferred can't carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalityMode {
    /// They go further away.
    Failover,
    /// They are refused: nobody outside the widest scope is sent to.
    Strict,
}

impl LocalityPolicy {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["prefer", "mode", "overprovisioningPercent"], &[])?;
        let scopes = [("node", Scope::Node), ("zone", Scope::Zone), ("region", Scope::Region)];
        let prefer = match fields.get("prefer") {
            Some(list) => {
                let prefer: Vec<Scope> = list
                    .list(0..=scopes.len())?
                    .iter()
                    .map(|at| at.one_of(&scopes, &[]))
                    .collect::<Result<_, _>>()?;
                if !prefer.is_sorted_by(|narrow, wide| narrow < wide) {
                    let accepted = "node, zone and region in this order, each once";
                    return Err(list.refuse(Reason::Conflict, accepted));
                }
                prefer
            }
            None => scopes.map(|(_, scope)| scope).to_vec(),
        };
        let modes = [("failover", LocalityMode::Failover), ("strict", LocalityMode::Strict)];
        let mode = fields.read("mode", |at| {
            let mode = at.one_of(&modes, &[])?;
            if mode == LocalityMode::Strict && prefer.is_empty() {
                return Err(at.refuse(Reason::Conflict, "failover, or a scope to prefer"));
            }
            Ok(mode)
        })?;
        let percent = fields.read("overprovisioningPercent", |at| at.integer(OVERPROVISIONING))?;
        Ok(Self {
            prefer,
            mode: mode.unwrap_or(LocalityMode::Failover),
            overprovisioning_percent: percent.map_or(OVERPROVISIONING_DEFAULT, |n| n as u16),
        })
    }
}
