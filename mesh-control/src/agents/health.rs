//! How the workloads of a node are, as its agent tells it, and what it has done for them.

use mesh_api::proto::v1::{CheckHealth, CheckReport, HealthReport, RecoveryEvent};
use mesh_api::resource::{CheckState, Health, Key, Kind, WorkloadHealth};
use mesh_registry::intent::WriteError;
use tonic::Status;

use super::session::{Session, failed};

impl Session {
    /// Notes how a workload is. What is not registered by this node is nobody's.
    pub(super) async fn report(&mut self, report: HealthReport) -> Result<(), Status> {
        let key = Key::new(Kind::Workload, &report.namespace, &report.name);
        let health = WorkloadHealth {
            starting: false,
            checks: report.checks.iter().map(check).collect(),
            drained: report.drained,
        };
        self.engine.metrics.health_reports.inc();
        match self.engine.report(self.owner.clone(), key.clone(), health).await {
            Ok(Some(revision)) => {
                tracing::info!(node = %self.who.node, workload = %key, revision, "its health has changed");
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(WriteError::Refused(error)) => {
                tracing::warn!(node = %self.who.node, workload = %key, %error, "a report of health was not taken");
                Ok(())
            }
            Err(WriteError::Store(error)) => Err(failed(&error)),
        }
    }

    /// Notes what was done for a workload of this node, and tells whom it names: only where the service asks for that.
    pub(super) fn recovery(&mut self, mut event: RecoveryEvent) {
        let key = Key::new(Kind::Workload, &event.namespace, &event.workload);
        if !self.registered.contains(&key) {
            return;
        }
        if !event.url.is_empty() && !self.engine.has_webhook(&event.namespace, &event.service, &event.url) {
            event.url.clear();
        }
        self.engine.hooks.take(&self.who.node, &event);
    }
}

fn check(report: &CheckReport) -> CheckState {
    CheckState {
        service: report.service.clone(),
        port: u16::try_from(report.port).unwrap_or_default(),
        udp: report.udp,
        health: match report.health() {
            CheckHealth::CheckHealthy => Health::Healthy,
            CheckHealth::CheckUnhealthy => Health::Unhealthy,
            CheckHealth::CheckStarting => Health::Starting,
        },
        reason: report.reason.clone(),
        since_ms: report.since_ms,
    }
}
