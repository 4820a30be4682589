//! The delta-xDS client: one stream to the control plane, connected again with back-off for as long as the
//! agent runs.
//!
//! control plane ──responses──▶ **xds** (state: sync) ──[`Update`]──▶ config ──rejected──▶ ACK or NACK
//!
//! Invariants: what the node has stays in force whatever happens here; one response is in work at a time,
//! so memory is bounded by the largest one; every wait has a deadline or is woken by keep-alive.
//!
//! Not here: the rules of the stream (sync), TLS (connect), what an update does (config).

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_api::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh_api::proto::discovery::{DeltaDiscoveryRequest, ErrorDetail, Node};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use super::backoff::Backoff;
use super::connect::{ControlPlane, chain};
use super::resource::{Kind, Rejected, Update, type_url};
use super::sync::{Answer, Leave, Step, Sync};
use super::{Handle, Known};

/// The largest response that is taken.
const MAX_RESPONSE: usize = 64 << 20;
/// From connecting to the barrier, at most.
const FIRST_SYNC: Duration = Duration::from_secs(15);
/// Answers on their way, at most: ten types, few with more than one response in flight.
const ANSWERS: usize = 16;
/// `INVALID_ARGUMENT` of gRPC: the code of a NACK.
const INVALID: i32 = 3;
/// Longest NACK text.
const MAX_REASON: usize = 2048;
/// Name of the condition that says that there is no control plane.
pub const CONDITION: &str = "control plane";

/// Counters and state, for metrics and readiness.
#[derive(Debug, Default)]
pub struct XdsStats {
    /// Responses acknowledged.
    pub acks: AtomicU64,
    /// Responses refused.
    pub nacks: AtomicU64,
    /// A stream is past its barrier.
    pub connected: AtomicBool,
}

/// The client. Run it once.
pub struct Client {
    /// Where to connect.
    pub control: ControlPlane,
    /// This node's name.
    pub node: String,
    /// Where updates go.
    pub config: Handle,
    /// Counters.
    pub stats: Arc<XdsStats>,
}

/// How a stream ended.
enum End {
    /// Connect again and ask for everything.
    AskAll,
    /// Wait, then connect again.
    Failed(String),
    /// The agent is ending.
    Closed,
}

impl Client {
    /// Runs until the config task is gone.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let mut ask_all = false;
        loop {
            let mut replica = None;
            let end = self.stream(ask_all, &mut replica).await;
            let synced = self.stats.connected.swap(false, Relaxed);
            if synced {
                backoff.reset();
            }
            // Twice in a row would be a loop between two stores: back off.
            let retry_now = matches!(end, End::AskAll) && !ask_all;
            ask_all = matches!(end, End::AskAll);
            match end {
                End::Closed => return,
                End::AskAll => {}
                End::Failed(why) => {
                    self.config.conditions().set(CONDITION, why);
                    if let Some(replica) = replica {
                        self.control.leave(replica);
                    }
                }
            }
            if !retry_now {
                tokio::time::sleep(backoff.step(fastrand::f64())).await;
            }
        }
    }

    /// `replica`: which it led to.
    async fn stream(&self, ask_all: bool, replica: &mut Option<usize>) -> End {
        let Some(known) = self.config.known().await else { return End::Closed };
        let full = ask_all || known.revision.store.is_empty();
        let mut sync = Sync::new(full, known.revision.clone());
        let deadline = Instant::now() + FIRST_SYNC;

        let channel = match self.control.connect().await {
            Ok((channel, number)) => {
                *replica = Some(number);
                channel
            }
            Err(error) => return End::Failed(error.to_string()),
        };
        let mut client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_RESPONSE)
            .max_encoding_message_size(MAX_RESPONSE);
        let (answers, requests) = mpsc::channel(ANSWERS);
        for request in self.subscriptions(known, full) {
            // There is room for all types.
            let _ = answers.try_send(request);
        }
        let call = client.delta_aggregated_resources(ReceiverStream::new(requests));
        let mut responses = match timeout_at(deadline, call).await {
            Err(_) => return End::Failed(format!("no answer within {FIRST_SYNC:?}")),
            Ok(Err(status)) => return self.refused(&status),
            Ok(Ok(response)) => response.into_inner(),
        };
        loop {
            let message = if sync.past_barrier() {
                // Keep-alive ends the stream when the peer is gone.
                responses.message().await
            } else {
                let Ok(message) = timeout_at(deadline, responses.message()).await else {
                    let missing = sync.missing();
                    return End::Failed(format!("no first response within {FIRST_SYNC:?} of {missing}"));
                };
                message
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => return End::Failed("it ended the stream".into()),
                Err(status) => return self.refused(&status),
            };
            match sync.on_response(response) {
                Step::Wait => {}
                Step::Refuse { type_url, nonce, reason } => {
                    self.stats.nacks.fetch_add(1, Relaxed);
                    if !send(&answers, answer(type_url, nonce, Some(reason))).await {
                        return End::Failed("it takes no answers".into());
                    }
                }
                Step::Leave(Leave::OtherStore { theirs }) => {
                    tracing::info!(
                        store = theirs,
                        "the control plane has another store: asking for everything"
                    );
                    return End::AskAll;
                }
                Step::Leave(why) => return End::Failed(why.to_string()),
                Step::Apply { update, answers: due } => {
                    if let Err(end) = self.apply(update, due, &answers).await {
                        return end;
                    }
                }
            }
        }
    }

    fn refused(&self, status: &tonic::Status) -> End {
        self.control.heard(status);
        End::Failed(explain(status))
    }

    /// Hands the update to the config task and answers for it.
    async fn apply(
        &self,
        update: Update,
        due: Vec<Answer>,
        answers: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), End> {
        let Some(rejected) = self.config.apply(update).await else { return Err(End::Closed) };
        for Answer { kind, nonce } in due {
            let reason = nack_reason(kind, &rejected);
            let counter = if reason.is_some() { &self.stats.nacks } else { &self.stats.acks };
            counter.fetch_add(1, Relaxed);
            if !send(answers, answer(type_url(kind).into(), nonce, reason)).await {
                return Err(End::Failed("it takes no answers".into()));
            }
        }
        if !self.stats.connected.swap(true, Relaxed) {
            self.config.conditions().clear(CONDITION);
            tracing::info!("in step with the control plane");
        }
        Ok(())
    }

    /// The first request of each type.
    fn subscriptions(&self, mut known: Known, full: bool) -> Vec<DeltaDiscoveryRequest> {
        let request = |kind: Kind| DeltaDiscoveryRequest {
            node: Some(Node { id: self.node.clone(), ..Node::default() }),
            type_url: type_url(kind).into(),
            resource_names_subscribe: vec!["*".into()],
            initial_resource_versions: if full {
                BTreeMap::new()
            } else {
                known.versions.remove(&kind).unwrap_or_default()
            },
            ..DeltaDiscoveryRequest::default()
        };
        Kind::ALL.into_iter().map(request).collect()
    }
}

async fn send(answers: &mpsc::Sender<DeltaDiscoveryRequest>, request: DeltaDiscoveryRequest) -> bool {
    matches!(timeout(Duration::from_secs(10), answers.send(request)).await, Ok(Ok(())))
}

fn answer(type_url: String, nonce: String, refusal: Option<String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url,
        response_nonce: nonce,
        error_detail: refusal.map(|message| ErrorDetail { code: INVALID, message }),
        ..DeltaDiscoveryRequest::default()
    }
}

/// The text of a NACK: every rejected resource of this type with its reason, cut at a bound.
fn nack_reason(kind: Kind, rejected: &[Rejected]) -> Option<String> {
    let mut text = String::new();
    for one in rejected.iter().filter(|r| r.key.0 == kind) {
        if text.len() > MAX_REASON {
            text.push_str("; and more");
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        let _ = write!(text, "{kind} {}: {}", one.key.1, one.reason);
    }
    (!text.is_empty()).then_some(text)
}

/// A gRPC status as people are to read it, with the remedy where there is one.
pub fn explain(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            format!("it refused this node: {}", status.message())
        }
        code => {
            let said =
                if status.message().is_empty() { format!("{code:?}") } else { status.message().to_owned() };
            match status.source() {
                Some(cause) if !said.contains(&chain(cause)) => format!("{said}: {}", chain(cause)),
                _ => said,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nack_names_what_was_rejected_of_its_own_type() {
        let one = |kind, name: &str| Rejected { key: (kind, name.into()), reason: "bad".into() };
        let rejected = [one(Kind::Service, "a/b"), one(Kind::Workload, "a/c"), one(Kind::Service, "a/d")];
        assert_eq!(nack_reason(Kind::Service, &rejected).unwrap(), "Service a/b: bad; Service a/d: bad");
        assert_eq!(nack_reason(Kind::Mesh, &rejected), None);
        let many: Vec<_> = (0..10_000).map(|i| one(Kind::Service, &i.to_string())).collect();
        assert!(nack_reason(Kind::Service, &many).unwrap().len() < MAX_REASON + 100);
    }
}
