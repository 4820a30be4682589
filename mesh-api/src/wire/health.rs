//! Health checks and recoveries to wire messages.

use std::time::Duration;

use crate::proto::v1;
use crate::resource::{
    Header, HealthCheck, HttpProbe, Probe, Recovery, RecoveryAction, Restart, Statuses, Step,
};

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn check(check: &HealthCheck) -> v1::HealthCheck {
    use v1::health_check::Probe as Wire;
    let probe = match &check.probe {
        Probe::Http(probe) => Wire::Http(http(probe)),
        Probe::Grpc(probe) => Wire::Grpc(probe.service.clone()),
        Probe::Tcp(_) => Wire::Tcp(true),
        Probe::Command(command) => Wire::Command(command.name.clone()),
    };
    v1::HealthCheck {
        probe: Some(probe),
        port: check.port().map_or(0, u32::from),
        interval_ms: millis(check.interval),
        timeout_ms: millis(check.timeout),
        jitter_percent: check.jitter_percent.into(),
        healthy_threshold: check.healthy_threshold,
        unhealthy_threshold: check.unhealthy_threshold,
        startup_grace_ms: millis(check.startup_grace),
    }
}

fn http(probe: &HttpProbe) -> v1::HttpProbe {
    let header = |Header { name, value }: &Header| v1::Header { name: name.clone(), value: value.clone() };
    let range = |range: &Statuses| v1::StatusRange { from: range.from.into(), to: range.to.into() };
    v1::HttpProbe {
        path: probe.path.clone(),
        headers: probe.headers.iter().map(header).collect(),
        statuses: probe.expected_statuses.iter().map(range).collect(),
    }
}

pub(super) fn recovery(recovery: &Recovery) -> v1::Recovery {
    v1::Recovery {
        steps: recovery.steps.iter().map(step).collect(),
        readmit_passes: recovery.readmit.map_or(0, |readmit| readmit.after_passes),
    }
}

fn step(step: &Step) -> v1::RecoveryStep {
    use v1::recovery_step::Action as Wire;
    let action = match &step.action {
        RecoveryAction::Drain {} => Wire::Drain(true),
        RecoveryAction::Eject {} => Wire::Eject(true),
        RecoveryAction::Webhook(webhook) => Wire::Webhook(webhook.url.clone()),
        RecoveryAction::Restart(Restart { name, at_most }) => {
            Wire::Restart(v1::RestartStep { command: name.clone(), at_most: *at_most })
        }
    };
    v1::RecoveryStep { after: step.after, action: Some(action) }
}
