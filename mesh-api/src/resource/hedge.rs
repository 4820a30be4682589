//! When a request that is slow to be answered is sent to a second endpoint as well: `TrafficPolicy.spec.hedge`.
//!
//! Not here: which requests are (the agent's path), how many may be (mesh-core's hedge).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;

use super::traffic_policy::some_text;
use crate::error::{ApiError, Reason};
use crate::walk::At;

/// When, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// After so long without an answer; `None`: see `percentile`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_text")]
    pub after: Option<Duration>,
    /// After as long as so many of a hundred answers of the service have taken; `None`: see `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile: Option<u8>,
    /// So many of a hundred requests in flight may be, and one at least.
    pub max_percent: u8,
}

const AFTER: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_mins(1);
/// Of a hundred requests in flight, where nobody says.
const MAX_PERCENT: u8 = 10;

impl Hedge {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["after", "percentile", "maxPercent"], &["methods"])?;
        let percentile = fields.read("percentile", |at| at.integer(50..=99))?;
        let most = fields.read("maxPercent", |at| at.integer(1..=100))?;
        let hedge = Self {
            after: fields.read("after", |at| at.duration(AFTER))?,
            percentile: percentile.map(|n| n as u8),
            max_percent: most.map_or(MAX_PERCENT, |n| n as u8),
        };
        if hedge.after.is_some() == hedge.percentile.is_some() {
            return Err(at.refuse(Reason::Conflict, "either after or percentile"));
        }
        Ok(hedge)
    }
}
