//! What is done for a workload that does not get well, and when it is well again.
//!
//! Whom the mesh sends to is not changed here: that follows from what is told of the workload. Every action is logged,
//! counted and told to the control plane with its reason, which tells webhooks in turn.

use mesh_api::proto::v1::RecoveryEvent;
use mesh_core::health::machine::Do;
use mesh_core::health::{Action, Which};

use super::commands::Commands;
use super::probe::Place;
use super::{Health, command, now_ms};
use crate::authorise;
use crate::session::Name;

/// Acts for one workload.
pub struct Recoverer<'a> {
    pub health: &'a Health,
    pub place: &'a Place,
    pub name: &'a Name,
    pub service: &'a Which,
    pub commands: &'a Commands,
}

impl Recoverer<'_> {
    /// Does one thing. `true`: a restart was tried.
    pub async fn act(&self, todo: &Do, reason: &str) -> bool {
        match todo {
            Do::Step(Action::Drain) => self.say("drain", Ok(()), reason).await,
            Do::Step(Action::Eject) => {
                let ended = self.eject().await;
                let why = match &ended {
                    Ok(count) => format!("{reason}; {count} connections were reset"),
                    Err(_) => reason.to_owned(),
                };
                self.say("eject", ended.map(drop), &why).await;
            }
            Do::Step(Action::Webhook(url)) => self.tell(url, reason, false).await,
            Do::Tell(url) => self.tell(url, "it is healthy again", true).await,
            Do::Readmit => self.say("readmit", Ok(()), "it is healthy again").await,
            Do::Step(Action::Restart { command, .. }) => {
                let done = self.restart(command).await;
                self.say("restart", done, reason).await;
                return true;
            }
            Do::GiveUp(command) => {
                let done = Err(format!("{command} was run as often as it may be: it does not help"));
                self.say("restart", done, reason).await;
            }
        }
        false
    }

    async fn restart(&self, name: &str) -> Result<(), String> {
        let known = self.commands.find(name).await?;
        command::run(self.place, &known, known.timeout).await
    }

    /// Resets what is open to the workload.
    async fn eject(&self) -> Result<usize, String> {
        let snapshot = self.health.config.snapshot();
        let Some(workload) = snapshot.workloads.get(&self.place.workload) else { return Ok(0) };
        let ports: Vec<u16> =
            workload.ports.iter().filter(|port| !port.udp()).map(|port| port.port).collect();
        let (addresses, netns) = (workload.addresses.to_vec(), self.place.netns.clone());
        let ended = tokio::task::spawn_blocking(move || authorise::end_inbound(&netns, &addresses, &ports));
        ended
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("connections cannot be reset: {error}"))
    }

    async fn tell(&self, url: &str, reason: &str, healthy: bool) {
        self.health.stats.acted("webhook", true);
        self.health
            .session
            .recovery(RecoveryEvent { url: url.into(), healthy, ..self.event("webhook", reason) })
            .await;
    }

    async fn say(&self, action: &'static str, done: Result<(), String>, reason: &str) {
        self.health.stats.acted(action, done.is_ok());
        let workload = format!("{}/{}", self.name.0, self.name.1);
        let text = match &done {
            Ok(()) => {
                tracing::info!(workload, service = %self.service.service, action, reason, "recovery");
                reason.to_owned()
            }
            Err(error) => {
                tracing::warn!(workload, service = %self.service.service, action, reason, error, "recovery failed");
                format!("{reason}; failed: {error}")
            }
        };
        let healthy = action == "readmit";
        self.health.session.recovery(RecoveryEvent { healthy, ..self.event(action, &text) }).await;
    }

    fn event(&self, action: &str, reason: &str) -> RecoveryEvent {
        RecoveryEvent {
            namespace: self.name.0.clone(),
            workload: self.name.1.clone(),
            service: self.service.name().to_owned(),
            action: action.to_owned(),
            url: String::new(),
            reason: reason.to_owned(),
            at_ms: now_ms(),
            healthy: false,
        }
    }
}
