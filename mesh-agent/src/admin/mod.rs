//! The server of `agent.sock`: reads a request, has it done, answers.
//!
//! peers (root only) ──▶ [`socket`] ──▶ **admin** ──▶ { enrol, snapshot, identities, status, kernel, flows, log filter }
//!
//! Invariants: nobody but uid 0 is answered with anything but a refusal; connections are bounded, each waits
//! for its next request for a bounded time; what a request may carry is bounded by a packet.
//!
//! Not here: what enrolment is (enrol), the form of messages (mesh-api's `local`), hand-over (handover): its
//! connection is passed on.

mod dump;
mod explain;
mod flows;
pub mod log;
pub mod socket;
mod tap;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::local::{Answer, FlowQuery, NodeStatus, Request, TapQuery, VERSION};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};

use crate::config::Handle as Config;
use crate::config::resource::show_revision;
use crate::config::xds::XdsStats;
use crate::enrol::{Enrolled, Enrolments, Wanted};
use crate::handover::HAND_OVER;
use crate::identity::Identities;
use crate::kernel::Kernel;
use crate::path::Proxy;
use crate::telemetry::{ended::Ended, open::Open};
use log::LogFilter;
use socket::{Connection, Listener, Peer};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest time that a workload drains before it leaves.
const DRAIN_MAX: Duration = Duration::from_mins(10);
/// Longest counting of the programs' runs, milliseconds.
const MEASURE_MAX: u32 = 10_000;

/// Everything that a request may ask for.
#[derive(Clone)]
pub struct Admin {
    /// This node's name.
    pub node: String,
    /// Enrolment.
    pub enrolments: Enrolments,
    /// Certificates.
    pub identities: Identities,
    /// Snapshot and conditions.
    pub config: Config,
    /// In step with the control plane?
    pub xds: Arc<XdsStats>,
    /// The log's filter.
    pub log: LogFilter,
    /// Takes the connection of an agent that wants to take over.
    pub successors: mpsc::Sender<OwnedFd>,
    /// Programs and maps.
    pub kernel: Arc<Kernel>,
    /// Requests.
    pub proxy: Proxy,
    /// Flows that have ended.
    pub ended: Arc<Ended>,
    /// Flows that have not.
    pub open: Arc<Open>,
    /// Room for readers of flows.
    pub flow_readers: Arc<Semaphore>,
}

/// Room for as many as may look at the flows at once.
pub fn flow_readers() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(flows::READERS))
}

/// What a request leads to.
enum Reply {
    Answer(Box<Answer>, Option<OwnedFd>),
    Flows(FlowQuery),
    Tap(TapQuery),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer), None)
    }
}

impl Admin {
    /// Serves until the process ends.
    pub async fn serve(self, listener: Listener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // Whoever comes when there is no room waits in the listener's backlog.
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok(connection) => {
                    let admin = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = admin.connection(connection).await {
                            tracing::debug!(%error, "agent.sock: a connection ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "agent.sock: accept failed");
                    // Out of descriptors, most likely: they come back when connections end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, connection: Connection) -> io::Result<()> {
        let peer = connection.peer()?;
        loop {
            let packet = match tokio::time::timeout(SILENCE, connection.recv()).await {
                Err(_) | Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(packet))) => packet,
                Ok(Err(error)) => {
                    send(&connection, &Answer::refused(error.to_string()), None).await?;
                    return Err(error);
                }
            };
            if peer.uid == 0 && is_hand_over(&packet.0) {
                // Answered when nothing of this agent but its proxy runs.
                return self.successors.send(connection.into_inner()).await.map_err(io::Error::other);
            }
            match self.request(peer, &packet.0, packet.1).await {
                Reply::Answer(answer, file) => send(&connection, &answer, file).await?,
                Reply::Flows(query) => return flows::serve(self, &connection, query).await,
                Reply::Tap(query) => return tap::serve(self, &connection, query).await,
            }
        }
    }

    async fn request(&self, peer: Peer, bytes: &[u8], fds: Vec<OwnedFd>) -> Reply {
        if peer.uid != 0 {
            return Answer::refused("only root may speak to the agent").into();
        }
        let request: Request = match serde_json::from_slice(bytes) {
            Ok(request) => request,
            Err(error) => return Answer::refused(format!("not a request: {error}")).into(),
        };
        if request.v != VERSION {
            let text =
                format!("v: {} is not {VERSION}: agent and client are of different versions", request.v);
            return Answer::refused(text).into();
        }
        match request.op.as_str() {
            "snapshot" => in_a_file("snapshot", &dump::snapshot(&self.config.snapshot())),
            "identities" => in_a_file("identities", &self.identities.dump()),
            "flows" => Reply::Flows(request.flows),
            "tap" => Reply::Tap(request.tap),
            _ => self.plain(peer, request, fds).await.unwrap_or_else(Answer::refused).into(),
        }
    }

    /// Requests that are answered with a message alone.
    async fn plain(&self, peer: Peer, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, String> {
        let mut fds = fds.into_iter();
        match request.op.as_str() {
            "enrol" => {
                let (Some(netns), Some(cgroup), None) = (fds.next(), fds.next(), fds.next()) else {
                    return Err(
                        "enrol brings two descriptors: a network namespace and a cgroup directory".into()
                    );
                };
                let enrolled = self.enrolments.enrol(Wanted::parse(request)?, netns, &cgroup).await?;
                Ok(enrolled_answer(enrolled))
            }
            "run" => {
                let (Some(netns), None) = (fds.next(), fds.next()) else {
                    return Err("run brings one descriptor: a network namespace".into());
                };
                let enrolled = self.enrolments.run(Wanted::parse(request)?, netns, peer.pid).await?;
                Ok(enrolled_answer(enrolled))
            }
            "leave" => {
                let drain = Duration::from_millis(request.drain_ms.into());
                if drain > DRAIN_MAX {
                    return Err(format!(
                        "drainMs: {} is not in 0..={}",
                        request.drain_ms,
                        DRAIN_MAX.as_millis()
                    ));
                }
                let (namespace, name) = Wanted::parse(request)?.name();
                self.enrolments.leave(&namespace, &name, drain).await?;
                Ok(Answer::ok())
            }
            "status" => Ok(Answer { status: Some(self.status().await), ..Answer::ok() }),
            "kernel" => self.kernel(request.measure_ms).await,
            "explain" => explain::answer(self, &request.explain),
            "log" => {
                self.log.set(&request.level)?;
                Ok(Answer::ok())
            }
            other => Err(format!(
                "op: {other:?} is not enrol, run, leave, status, kernel, flows, tap, explain, snapshot, identities, log or handOver"
            )),
        }
    }

    async fn status(&self) -> NodeStatus {
        let snapshot = self.config.snapshot();
        let (identities, more_identities) = self.identities.status();
        NodeStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            epoch: snapshot.epoch,
            revision: show_revision(&snapshot.revision),
            connected: self.xds.connected.load(std::sync::atomic::Ordering::Relaxed),
            services: snapshot.services.len(),
            workloads: snapshot.workloads.len(),
            enrolled: self.enrolments.list().await,
            conditions: self.config.conditions().list(),
            identities,
            more_identities,
        }
    }

    async fn kernel(&self, measure_ms: u32) -> Result<Answer, String> {
        if measure_ms > MEASURE_MAX {
            return Err(format!("measureMs: {measure_ms} is not in 0..={MEASURE_MAX}"));
        }
        let kernel = self.kernel.clone();
        let wait = move || std::thread::sleep(Duration::from_millis(measure_ms.into()));
        let viewed = move || kernel.view((measure_ms > 0).then_some(&wait as &dyn Fn()));
        let status = tokio::task::spawn_blocking(viewed).await.map_err(|e| e.to_string())?;
        Ok(Answer { kernel: Some(status.map_err(|e| e.to_string())?), ..Answer::ok() })
    }
}

/// An answer that no packet holds.
fn in_a_file(name: &str, value: &serde_json::Value) -> Reply {
    let write = || -> io::Result<OwnedFd> {
        let json = serde_json::to_vec_pretty(value)?;
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(file);
        file.write_all(&json)?;
        io::Seek::rewind(&mut file)?;
        Ok(file.into())
    };
    match write() {
        Ok(file) => Reply::Answer(Box::new(Answer::ok()), Some(file)),
        Err(error) => Answer::refused(format!("{name} cannot be shown: {error}")).into(),
    }
}

fn is_hand_over(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Request>(bytes).is_ok_and(|r| r.v == VERSION && r.op == HAND_OVER)
}

fn enrolled_answer(enrolled: Enrolled) -> Answer {
    Answer { workload: Some(enrolled.workload), conditions: enrolled.conditions, ..Answer::ok() }
}

async fn send(connection: &Connection, reply: &impl Serialize, file: Option<OwnedFd>) -> io::Result<()> {
    let bytes = serde_json::to_vec(reply)?;
    let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    tokio::time::timeout(SILENCE, connection.send(&bytes, &fds)).await.map_err(io::Error::other)?
}
