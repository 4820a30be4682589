//! `Node.Session`: this node's workloads, kept registered with the control plane.
//!
//! enrol ──upsert / remove──▶ **session** ◀──stream──▶ control plane
//!                              │ verdicts
//!                              └──▶ who waits, else enrol
//!
//! Everything is told again on every connection, before the first heartbeat: what is not repeated, the
//! control plane withdraws. While there is none, enrolments hold and changes are kept.
//!
//! Invariants: what is to be told is bounded by the node's workloads (one entry each); every wait has a
//! deadline. Not here: what an enrolment is (enrol), what a refusal leads to (enrol).

mod table;

use std::time::Duration;

use mesh_api::proto::v1::node_client::NodeClient;
use mesh_api::proto::v1::session_down::Message as Down;
use mesh_api::proto::v1::session_up::Message as Up;
use mesh_api::proto::v1::{HealthReport, Heartbeat, Hello, RecoveryEvent, SessionUp, Status, WorkloadUpsert};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::config::Handle as Config;
use crate::config::backoff::Backoff;
use crate::config::connect::ControlPlane;
use crate::config::xds::explain;
use table::Table;
pub use table::{Name, Verdict};

/// How long a message may wait for room in the stream, and the call for its beginning.
const SEND: Duration = Duration::from_secs(10);
/// Until the control plane says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Changes of status within this time are told as one.
const QUIET: Duration = Duration::from_millis(100);
/// Longest sensible interval between heartbeats that is taken from the control plane.
const MAX_HEARTBEAT: u32 = 3600;

/// A change of what is registered.
enum Change {
    Upsert { upsert: Box<WorkloadUpsert>, waiter: oneshot::Sender<Verdict> },
    Remove(Name),
    Health(HealthReport),
    Recovery(RecoveryEvent),
}

/// Tells the session what to register. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    changes: mpsc::Sender<Change>,
}

impl Handle {
    /// Registers a workload, now and on every later connection. The receiver gets the first verdict; it
    /// stays silent for as long as there is no control plane.
    pub async fn upsert(&self, upsert: WorkloadUpsert) -> oneshot::Receiver<Verdict> {
        let (waiter, verdict) = oneshot::channel();
        let change = Change::Upsert { upsert: Box::new(upsert), waiter };
        let _ = self.changes.send(change).await;
        verdict
    }

    /// Tells how a workload is, now and on every later connection.
    pub async fn health(&self, report: HealthReport) {
        let _ = self.changes.send(Change::Health(report)).await;
    }

    /// Tells what was done for a workload, once.
    pub async fn recovery(&self, event: RecoveryEvent) {
        let _ = self.changes.send(Change::Recovery(event)).await;
    }

    /// Withdraws it.
    pub async fn remove(&self, namespace: &str, name: &str) {
        let name = (namespace.to_owned(), name.to_owned());
        let _ = self.changes.send(Change::Remove(name)).await;
    }
}

/// The session. Run it once.
pub struct Session {
    control: ControlPlane,
    node: String,
    config: Config,
    changes: mpsc::Receiver<Change>,
    verdicts: mpsc::Sender<(Name, Verdict)>,
    table: Table,
    /// Which replica of the control plane it is with.
    replica: Option<usize>,
}

/// A stream's two halves.
struct Stream {
    up: mpsc::Sender<SessionUp>,
    down: Streaming<mesh_api::proto::v1::SessionDown>,
}

/// A session, the handle to it, and the verdicts that nobody waited for.
pub fn new(
    control: ControlPlane,
    node: String,
    config: Config,
) -> (Session, Handle, mpsc::Receiver<(Name, Verdict)>) {
    let (sender, changes) = mpsc::channel(64);
    let (verdicts, unasked) = mpsc::channel(256);
    let session =
        Session { control, node, config, changes, verdicts, table: Table::default(), replica: None };
    (session, Handle { changes: sender }, unasked)
}

impl Session {
    /// Runs until every handle is gone. Says nothing before `restored` ends: what a session does not repeat
    /// before its first heartbeat is dropped, so the workloads of an earlier agent must be known by then.
    pub async fn run(mut self, mut restored: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                // What was said before the end is taken before the end.
                biased;
                change = self.changes.recv() => match change {
                    None => return,
                    Some(change) => self.later(change),
                },
                _ = &mut restored => break,
            }
        }
        let mut backoff = Backoff::default();
        loop {
            match self.open().await {
                Ok(stream) => {
                    backoff.reset();
                    match self.serve(stream).await {
                        Ok(()) => return,
                        Err(why) => tracing::info!(why, "the session with the control plane ended"),
                    }
                }
                Err(why) => tracing::debug!(why, "no session with the control plane"),
            }
            if let Some(replica) = self.replica.take() {
                self.control.leave(replica);
            }
            if !self.rest(backoff.step(fastrand::f64())).await {
                return;
            }
        }
    }

    /// Waits, and keeps what is said meanwhile; false: every handle is gone.
    async fn rest(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        while let Ok(change) = tokio::time::timeout_at(until, self.changes.recv()).await {
            match change {
                None => return false,
                Some(change) => self.later(change),
            }
        }
        true
    }

    fn keep(&mut self, change: Change) -> SessionUp {
        let message = match change {
            Change::Upsert { upsert, waiter } => Up::Upsert(self.table.upsert(*upsert, waiter)),
            Change::Remove(name) => Up::Remove(self.table.remove(name)),
            Change::Health(report) => Up::Health(self.table.report(report)),
            Change::Recovery(event) => Up::Recovery(event),
        };
        SessionUp { message: Some(message) }
    }

    /// Keeps it for the next connection.
    fn later(&mut self, change: Change) {
        match change {
            Change::Recovery(event) => self.table.later(event),
            change => drop(self.keep(change)),
        }
    }

    async fn open(&mut self) -> Result<Stream, String> {
        let (channel, replica) = self.control.connect().await.map_err(|e| e.to_string())?;
        self.replica = Some(replica);
        let mut client = NodeClient::new(channel);
        let (up, messages) = mpsc::channel(64);
        let hello = Hello {
            node: self.node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            features: vec!["tcp".into(), "http1".into()],
        };
        say(&up, Up::Hello(hello)).await?;
        let call = timeout(SEND, client.session(ReceiverStream::new(messages)));
        let down =
            call.await.map_err(|_| "no answer".to_owned())?.map_err(|s| self.refused(&s))?.into_inner();
        for upsert in self.table.again() {
            say(&up, Up::Upsert(upsert)).await?;
        }
        for report in self.table.reports() {
            say(&up, Up::Health(report)).await?;
        }
        say(&up, Up::Heartbeat(Heartbeat {})).await?;
        say(&up, Up::Status(self.status())).await?;
        for event in self.table.kept() {
            say(&up, Up::Recovery(event)).await?;
        }
        Ok(Stream { up, down })
    }

    /// Until the stream ends (`Err`) or every handle is gone.
    async fn serve(&mut self, stream: Stream) -> Result<(), String> {
        let Stream { up, mut down } = stream;
        let mut heartbeat = ticker(HEARTBEAT);
        let mut conditions = self.config.conditions().watch();
        let mut epoch = self.config.epoch();
        let mut status_due: Option<Instant> = None;
        loop {
            tokio::select! {
                change = self.changes.recv() => match change {
                    None => return Ok(()),
                    Some(change) => {
                        let message = self.keep(change);
                        timeout(SEND, up.send(message)).await.map_err(|_| "it takes no messages")?
                            .map_err(|_| "the stream ended")?;
                    }
                },
                message = down.message() => match message {
                    Ok(Some(message)) => {
                        if let Some(Down::Welcome(welcome)) = &message.message {
                            let seconds = welcome.heartbeat_seconds.clamp(1, MAX_HEARTBEAT);
                            heartbeat = ticker(Duration::from_secs(seconds.into()));
                        }
                        self.on_down(message.message);
                    }
                    Ok(None) => return Err("it ended the stream".into()),
                    Err(status) => return Err(self.refused(&status)),
                },
                _ = heartbeat.tick() => {
                    say(&up, Up::Heartbeat(Heartbeat {})).await?;
                    for upsert in self.table.troubled() {
                        say(&up, Up::Upsert(upsert)).await?;
                    }
                }
                Ok(()) = conditions.changed() => { status_due.get_or_insert(Instant::now() + QUIET); }
                Ok(()) = epoch.changed() => { status_due.get_or_insert(Instant::now() + QUIET); }
                () = due(status_due) => {
                    status_due = None;
                    say(&up, Up::Status(self.status())).await?;
                }
            }
        }
    }

    fn refused(&self, status: &tonic::Status) -> String {
        self.control.heard(status);
        explain(status)
    }

    fn on_down(&mut self, message: Option<Down>) {
        let answered = match message {
            Some(Down::Accepted(a)) => self.table.answered(a.request, Verdict::Accepted(a.conditions)),
            Some(Down::Refused(r)) => self.table.answered(r.request, Verdict::Refused(r.reason)),
            Some(Down::Welcome(_)) | None => None,
        };
        if let Some(unasked) = answered
            && let Err(error) = self.verdicts.try_send(unasked)
        {
            tracing::warn!(%error, "a verdict of the control plane was not taken");
        }
    }

    fn status(&self) -> Status {
        let snapshot = self.config.snapshot();
        Status {
            epoch: snapshot.epoch,
            system_version: crate::config::resource::show_revision(&snapshot.revision),
            conditions: self.config.conditions().list(),
            ejections: self.config.ejections(),
        }
    }
}

fn ticker(every: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval_at(Instant::now() + every, every);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticker
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn say(up: &mpsc::Sender<SessionUp>, message: Up) -> Result<(), String> {
    let sent = timeout(SEND, up.send(SessionUp { message: Some(message) })).await;
    sent.map_err(|_| "it takes no messages")?.map_err(|_| "the stream ended")?;
    Ok(())
}
