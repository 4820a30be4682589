//! `accessLog` of a `TransportPolicy`: which requests are written down. What is absent is not.

use serde::Serialize;

use crate::error::ApiError;
use crate::walk::At;

/// Which requests of a workload are written to its agent's access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AccessLog {
    /// Of a hundred so many, whatever becomes of them: 0..=100.
    pub percent: u8,
    /// All that do not come out well.
    pub errors: bool,
}

impl AccessLog {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["percent", "errors"], &[])?;
        Ok(Self {
            percent: fields.read("percent", |at| at.integer(0..=100).map(|n| n as u8))?.unwrap_or(0),
            errors: fields.read("errors", |at| at.boolean())?.unwrap_or(false),
        })
    }
}
