//! `Identity`: certificates for nodes and what they host.
//!
//! Join comes without a certificate, and brings a token; Sign comes with one. What is asked is judged by the
//! office; here calls become threads that may block.

use std::sync::Arc;

use mesh_api::proto::v1::identity_server::Identity;
use mesh_api::proto::v1::{JoinRequest, JoinResponse, SignRequest, SignResponse};
use tonic::{Request, Response, Status};

use super::{Agents, peer_of};
use crate::ca::office::{BATCH_MAX, OfficeError};
use crate::clock::unix_s;
use crate::engine::members::JoinError;

#[tonic::async_trait]
impl Identity for Agents {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let (office, request) = (self.office.clone(), request.into_inner());
        let node: String = request.node.chars().take(253).collect();
        let joined = blocking(move || office.join(&request, unix_s())).await;
        joined.map(Response::new).inspect_err(|status| {
            self.engine.metrics.joins_refused.inc();
            tracing::warn!(node, why = status.message(), "a node may not join");
        })
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let peer = peer_of(&request)?;
        let who = self.engine.members.admit(&peer, unix_s()).map_err(Status::from)?;
        let requests = request.into_inner().requests;
        if requests.len() > BATCH_MAX {
            return Err(Status::invalid_argument(format!("more than {BATCH_MAX} requests in one call")));
        }
        let office = self.office.clone();
        let results = blocking(move || office.sign(&who, &requests, unix_s())).await?;
        Ok(Response::new(SignResponse { results }))
    }
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, OfficeError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(status(&error)),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

fn status(error: &OfficeError) -> Status {
    match error {
        OfficeError::Join(JoinError::Token(text)) => Status::unauthenticated(text),
        OfficeError::Join(JoinError::Forbidden(text)) => Status::permission_denied(text),
        OfficeError::Request(text) => Status::invalid_argument(text),
        other => {
            tracing::error!(error = %other, "the authority failed");
            Status::unavailable(other.to_string())
        }
    }
}

/// What is shared with the rest of the port.
pub(super) type Office = Arc<crate::ca::office::Office>;
