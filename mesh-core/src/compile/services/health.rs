//! How the workloads behind a service port are asked whether they are well: its own check, else the service's.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1;
use mesh_api::proto::v1::health_check::Probe as WireProbe;
use mesh_api::proto::v1::recovery_step::Action as WireAction;

use super::super::Compiler;
use crate::health::{Action, Check, Health, Http, Probe, Recovery, Rules, Step};

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}

/// What holds for a port; `None`: nobody asks. A check that this agent does not know is none.
pub(super) fn health(service: &v1::Service, port: &v1::ServicePort) -> Option<Arc<Health>> {
    let own = port.health_check.as_ref();
    let check = own.or(service.health_check.as_ref())?;
    let probe = match check.probe.as_ref()? {
        WireProbe::Http(probe) => Probe::Http(Http {
            path: probe.path.clone(),
            headers: probe.headers.iter().map(|h| (h.name.clone(), h.value.clone())).collect(),
            statuses: probe.statuses.iter().map(|range| (range.from, range.to)).collect(),
        }),
        WireProbe::Grpc(service) => Probe::Grpc(service.clone()),
        WireProbe::Tcp(_) => Probe::Tcp,
        WireProbe::Command(name) => Probe::Command(name.clone()),
    };
    let rules = Rules {
        // What would never end, or ask all the time, is no check.
        interval: millis(check.interval_ms.max(100)),
        timeout: millis(check.timeout_ms.max(10)),
        jitter_percent: check.jitter_percent.min(100),
        healthy: check.healthy_threshold.max(1),
        unhealthy: check.unhealthy_threshold.max(1),
        grace: millis(check.startup_grace_ms),
    };
    let check = Check { probe, port: u16::try_from(check.port).ok().filter(|port| *port > 0), rules };
    Some(Arc::new(Health {
        check,
        own: own.is_some(),
        recovery: service.recovery.as_ref().map(recovery).unwrap_or_default(),
    }))
}

impl Compiler {
    /// Takes how long names may be remembered; `true`: it is another time.
    pub(in crate::compile) fn compile_dns(&mut self, mesh: &v1::Mesh) -> bool {
        std::mem::replace(&mut self.next.dns_ttl, mesh.dns_ttl_seconds) != mesh.dns_ttl_seconds
    }
}

fn recovery(recovery: &v1::Recovery) -> Recovery {
    let step = |step: &v1::RecoveryStep| {
        let action = match step.action.as_ref()? {
            WireAction::Drain(_) => Action::Drain,
            WireAction::Eject(_) => Action::Eject,
            WireAction::Webhook(url) => Action::Webhook(url.clone()),
            WireAction::Restart(restart) => {
                Action::Restart { command: restart.command.clone(), at_most: restart.at_most.max(1) }
            }
        };
        Some(Step { after: step.after.max(1), action })
    };
    Recovery { steps: recovery.steps.iter().filter_map(step).collect(), readmit: recovery.readmit_passes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_s_own_check_comes_first_and_what_is_not_known_is_none() {
        let check =
            |probe| v1::HealthCheck { probe: Some(probe), interval_ms: 1000, ..v1::HealthCheck::default() };
        let service =
            v1::Service { health_check: Some(check(WireProbe::Tcp(true))), ..v1::Service::default() };
        let mut port = v1::ServicePort { port: 80, ..v1::ServicePort::default() };
        let whole = health(&service, &port).unwrap();
        assert!(!whole.own && whole.check.probe == Probe::Tcp && whole.check.rules.unhealthy == 1);
        port.health_check = Some(check(WireProbe::Command("ready".into())));
        let own = health(&service, &port).unwrap();
        assert!(own.own && own.check.probe == Probe::Command("ready".into()));
        port.health_check = Some(v1::HealthCheck::default());
        assert_eq!(health(&service, &port), None);
        assert_eq!(health(&v1::Service::default(), &v1::ServicePort::default()), None);
    }
}
