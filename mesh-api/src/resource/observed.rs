//! How a workload is: what its node's agent found, kept with its registration.
//!
//! Not here: who checks (mesh-agent), what follows for endpoints (mesh-registry).

use serde::Serialize;

use crate::error::ApiError;
use crate::walk::At;

/// Most checks of one workload that are told of.
const MAX_CHECKS: usize = 1024;
/// Longest reason, in characters.
const MAX_REASON: usize = 512;

/// How a workload is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadHealth {
    /// It has just come, and nobody has checked it yet: services that check send it nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub starting: bool,
    /// Why no service sends anything new to it; empty: they do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub drained: String,
    /// What each check says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckState>,
}

/// What one check says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckState {
    /// The service, of the workload's own namespace, that asks for it.
    pub service: String,
    /// The port that asks for it; 0: the service as a whole.
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u16,
    /// That port is one of UDP.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub udp: bool,
    /// How the workload is.
    pub health: Health,
    /// Why, where it is not healthy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
fn is_zero(n: &u16) -> bool {
    *n == 0
}

/// How a workload is, by one check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// Well.
    #[default]
    Healthy,
    /// Not.
    Unhealthy,
    /// No check has passed yet.
    Starting,
}

impl Health {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Starting => "starting",
        }
    }
}

impl WorkloadHealth {
    /// Within the bounds: too long a text is cut, what is more than [`MAX_CHECKS`] is left out.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let cut = |text: &mut String| {
            if let Some((end, _)) = text.char_indices().nth(MAX_REASON) {
                text.truncate(end);
            }
        };
        self.checks.truncate(MAX_CHECKS);
        cut(&mut self.drained);
        self.checks.iter_mut().for_each(|check| cut(&mut check.reason));
        self
    }

    /// The same, since when it was so in `before`; reasons are those of the beginning.
    #[must_use]
    pub fn since(mut self, before: Option<&Self>) -> Self {
        for check in &mut self.checks {
            let same = |old: &&CheckState| {
                (&old.service, old.port, old.udp, old.health)
                    == (&check.service, check.port, check.udp, check.health)
            };
            if let Some(old) = before.and_then(|before| before.checks.iter().find(same)) {
                check.since_ms = old.since_ms;
                check.reason.clone_from(&old.reason);
            }
        }
        self
    }

    /// What decides for a port of a service: the port's own check, else the service's.
    pub fn of(&self, service: &str, port: u16, udp: bool) -> Option<&CheckState> {
        let own = |check: &&CheckState| check.service == service && (check.port, check.udp) == (port, udp);
        let whole = |check: &&CheckState| check.service == service && check.port == 0;
        self.checks.iter().find(own).or_else(|| self.checks.iter().find(whole))
    }

    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["starting", "drained", "checks"], &[])?;
        let checks = fields.each("checks", 0..=MAX_CHECKS, |at| CheckState::read(&at))?;
        Ok(Self {
            starting: fields.read("starting", |at| at.boolean())?.unwrap_or_default(),
            drained: fields.read("drained", |at| Ok(at.text("text")?.to_owned()))?.unwrap_or_default(),
            checks,
        })
    }
}

impl CheckState {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let known = ["service", "port", "udp", "health", "reason", "sinceMs"];
        let fields = at.object(&known, &[])?;
        let words =
            [Health::Healthy, Health::Unhealthy, Health::Starting].map(|health| (health.name(), health));
        Ok(Self {
            service: fields.need("service", "text")?.text("text")?.to_owned(),
            port: fields.read("port", |at| at.port())?.unwrap_or_default(),
            udp: fields.read("udp", |at| at.boolean())?.unwrap_or_default(),
            health: fields.need("health", "a word")?.one_of(&words, &[])?,
            reason: fields.read("reason", |at| Ok(at.text("text")?.to_owned()))?.unwrap_or_default(),
            since_ms: fields.need("sinceMs", "milliseconds")?.integer(0..=u64::MAX)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(port: u16, health: Health, reason: &str, since_ms: u64) -> CheckState {
        CheckState { service: "web".into(), port, udp: false, health, reason: reason.into(), since_ms }
    }

    #[test]
    fn what_is_still_so_is_so_since_it_began() {
        let before = WorkloadHealth {
            checks: vec![check(0, Health::Unhealthy, "500", 7), check(80, Health::Healthy, "", 7)],
            ..WorkloadHealth::default()
        };
        let now = WorkloadHealth {
            checks: vec![check(0, Health::Unhealthy, "refused", 9), check(80, Health::Unhealthy, "503", 9)],
            ..WorkloadHealth::default()
        };
        let now = now.since(Some(&before));
        assert_eq!(now.checks[0], check(0, Health::Unhealthy, "500", 7));
        assert_eq!(now.checks[1], check(80, Health::Unhealthy, "503", 9));
    }

    #[test]
    fn a_port_s_own_check_comes_before_the_service_s() {
        let checks = vec![check(0, Health::Unhealthy, "", 1), check(80, Health::Healthy, "", 1)];
        let health = WorkloadHealth { checks, ..WorkloadHealth::default() };
        assert_eq!(health.of("web", 80, false).unwrap().health, Health::Healthy);
        assert_eq!(health.of("web", 80, true).unwrap().health, Health::Unhealthy);
        assert_eq!(health.of("other", 80, false), None);
    }

    #[test]
    fn texts_are_bounded() {
        let long = WorkloadHealth {
            checks: vec![check(0, Health::Unhealthy, &"ä".repeat(9999), 1)],
            ..WorkloadHealth::default()
        };
        assert_eq!(long.bounded().checks[0].reason.chars().count(), MAX_REASON);
    }
}
