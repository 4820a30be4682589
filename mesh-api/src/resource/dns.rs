//! `dns` of the `Mesh` and of a `Service`: what is said of their names.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;

use super::traffic_policy::text;
use crate::error::{ApiError, Reason};
use crate::walk::At;

/// Accepted times.
const TTL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);

/// What is said of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// How long an answer may be remembered; whole seconds.
    #[serde(serialize_with = "text")]
    pub ttl: Duration,
}

impl Dns {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["ttl"], &["domain", "search"])?;
        let at = fields.need("ttl", "a duration in 0s..=1h")?;
        let ttl = at.duration(TTL)?;
        if ttl.subsec_millis() > 0 {
            return Err(at.refuse(Reason::OutOfRange, "whole seconds: names know no shorter ones"));
        }
        Ok(Self { ttl })
    }

    /// In seconds.
    pub fn seconds(self) -> u32 {
        u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX)
    }
}
