//! Asks the services that decide about requests (policies of action `custom`), before a request goes to its endpoint.
//!
//! ```text
//! authorise ──[`Question`]──▶ **ext_authz** ──http2's unary, as the called workload──▶ provider
//!      ▲                          │
//!      └── [`Granted`], or an answer for the client in its [`Account`]
//! ```
//!
//! A provider is a service of the mesh and is called as one, by the workload that is called itself: balanced, through
//! tunnels, under the provider's own policies. Requests to a provider's own ports are nobody's to ask about, so a
//! question never asks another one.
//!
//! Invariants: no answer in time is a refusal, unless the provider says otherwise; asked once a request and endpoint.
//! Not here: which policies ask (mesh-core's authorise), what answers mean (mesh-core's ext_authz).

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mesh_api::proto::ext_authz::{CheckRequest, CheckResponse};
use mesh_core::error::ProxyError;
use mesh_core::ext_authz::{ExtAuthz, Grant, Verdict, verdict};
use mesh_core::route::HeaderEdits;
use prost::Message as _;

use super::http2::unary;
use super::routing::Account;
use super::stats::one;
use super::told::Told;
use super::worker::Worker;
use crate::authorise::Quota;

/// What is called of a provider.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Failures that are logged.
static LOGGED: Quota = Quota::new();

/// Somebody to be asked about a request.
pub struct Question {
    /// Whom; `None`: the mesh has no such provider.
    pub provider: Option<Arc<ExtAuthz>>,
    /// The workload that is called, which asks.
    pub called: u32,
    /// What.
    pub message: CheckRequest,
}

/// A request that was let in.
#[derive(Default)]
pub struct Granted {
    /// What changes in it.
    pub told: Option<Told>,
    /// What changes in its response.
    pub response: Option<Box<HeaderEdits>>,
}

/// Why there is no answer.
enum Unanswered {
    NoProvider,
    NoService,
    NotHere,
    Late,
    Failed(ProxyError),
    Status(i32),
    Nonsense(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProvider => f.write_str("the mesh has no such provider"),
            Self::NoService => f.write_str("its service does not exist"),
            Self::NotHere => f.write_str("the workload has left"),
            Self::Late => f.write_str("no answer in time"),
            Self::Failed(error) => error.fmt(f),
            Self::Status(code) => write!(f, "it answers with grpc-status {code}"),
            Self::Nonsense(why) => write!(f, "its answer cannot be used: {why}"),
        }
    }
}

/// Asks all of them, one after the other. `granted`: what was to be changed before.
pub async fn ask(
    worker: &Rc<Worker>,
    questions: Vec<Question>,
    told: Option<Told>,
    account: &mut Account,
) -> Result<Granted, ProxyError> {
    let counters = &worker.shared.counters;
    let mut granted = Granted { told, response: None };
    for question in questions {
        match answer(worker, &question).await {
            Ok(Verdict::Granted(grant)) => {
                one(&counters.ext_authz_allowed);
                granted.add(grant);
            }
            Ok(Verdict::Denied(denial)) => {
                one(&counters.ext_authz_denied);
                account.denial = Some(denial);
                return Err(ProxyError::ExtAuthzDenied);
            }
            Err(why) => {
                let open = question.provider.as_ref().is_some_and(|provider| provider.fail_open);
                one(if open { &counters.ext_authz_unasked } else { &counters.ext_authz_failed });
                if LOGGED.take() {
                    let provider = question.provider.as_ref().map_or("", |provider| &provider.name);
                    let then = if open { "let in" } else { "refused" };
                    tracing::warn!(provider, %why, "a request is {then} without external authorisation");
                }
                if !open {
                    return Err(ProxyError::ExtAuthzFailed);
                }
            }
        }
    }
    Ok(granted)
}

async fn answer(worker: &Rc<Worker>, question: &Question) -> Result<Verdict, Unanswered> {
    let provider = question.provider.as_ref().ok_or(Unanswered::NoProvider)?;
    let service = provider.service.ok_or(Unanswered::NoService)?;
    let member = worker.common.members.lock().get(&question.called).cloned().ok_or(Unanswered::NotHere)?;
    let message = Bytes::from(question.message.encode_to_vec());
    let call = unary::call(worker, &member, service, CHECK, message);
    let answer = tokio::time::timeout(provider.timeout, call).await.map_err(|_| Unanswered::Late)?;
    let answer = answer.map_err(|error| match error {
        unary::CallError::Failed(error) => Unanswered::Failed(error),
        unary::CallError::Status(code) => Unanswered::Status(code),
        unary::CallError::Malformed(why) => Unanswered::Nonsense(why.to_owned()),
    })?;
    let answer = CheckResponse::decode(answer).map_err(|e| Unanswered::Nonsense(e.to_string()))?;
    verdict(&question.message, answer).map_err(|e| Unanswered::Nonsense(e.to_string()))
}

impl Granted {
    fn add(&mut self, grant: Grant) {
        if !grant.response.is_empty() {
            let before = self.response.take().unwrap_or_default();
            self.response = Some(Box::new(before.then(&grant.response)));
        }
        if !(grant.set.is_empty() && grant.add.is_empty() && grant.remove.is_empty()) {
            self.told.get_or_insert_default().grant(grant);
        }
    }
}
