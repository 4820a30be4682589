//! A stream without a body that is slow to be answered is begun at a second endpoint; whose answer begins first is sent on.
//!
//! The other one is reset. A failure is silent while the other one is under way.
//! Not here: when that is, and how many may be (resilience's hedge).

use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Response;
use mesh_core::route::HeaderEdits;

use super::super::intercept::Hop;
use super::super::resilience::hedge::{Second, Seed};
use super::super::routing::Account;
use super::Shared;
use super::mirror::Taps;
use super::peers::Lease;
use super::request::{Failed, Ready, Sent, failed_as, send};

/// The beginning of an answer.
pub(super) struct Begun {
    /// The stream's connection.
    pub lease: Lease,
    /// The answer.
    pub response: Response<RecvStream>,
    /// What external authorisation changes in it.
    pub granted: Option<Box<HeaderEdits>>,
}

/// What a second stream would come from; `None`: there will be none. `whole`: there is no body.
pub(super) fn seed(ready: &Ready, whole: bool, account: &Account) -> Option<Seed> {
    account.ticket.as_ref()?;
    let service = ready.backend.as_ref().filter(|_| whole && ready.head.method().is_idempotent())?;
    account.seed(service, &ready.hop)
}

/// The answer that begins first.
pub(super) async fn first_of(
    shared: &Rc<Shared>,
    (ready, sent): (&mut Ready, Sent),
    seed: &Seed,
    respond: &mut SendResponse<Bytes>,
    account: &mut Account,
) -> Result<Begun, Failed> {
    let mut other = Ready {
        head: ready.head.clone(),
        hop: ready.hop,
        backend: ready.backend.clone(),
        edits: None,
        terms: None,
        taps: Taps::default(),
    };
    let mut failed = None;
    let begun = {
        let mut first = pin!(answer(sent));
        let mut second = pin!(second(shared, &mut other, seed));
        let (mut one, mut two) = (true, true);
        loop {
            tokio::select! {
                biased;
                done = &mut first, if one => match done {
                    Ok(begun) => break (begun, None),
                    Err(error) => (one, failed) = (false, Some(error)),
                },
                done = &mut second, if two => match done {
                    Some((begun, account, place)) => break (begun, Some((account, place))),
                    None => two = false,
                },
                _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Err(Failed::Gone),
            }
            match failed.take() {
                Some(error) if !two || !seed.is_sown() => return Err(error),
                kept => failed = kept,
            }
        }
    };
    let (begun, won) = begun;
    if let Some((second, place)) = won {
        account.overtaken(&shared.caller(), second);
        ready.hop = other.hop;
        drop(place);
    }
    Ok(begun)
}

async fn answer(sent: Sent) -> Result<Begun, Failed> {
    let Sent { lease, response, granted, .. } = sent;
    let response = response.await.map_err(|error| failed_as(&error))?;
    Ok(Begun { lease, response, granted })
}

/// The second stream, from its wait on; `None`: there is none, or it has failed.
async fn second(shared: &Rc<Shared>, ready: &mut Ready, seed: &Seed) -> Option<(Begun, Account, Second)> {
    tokio::time::sleep(seed.after).await;
    let (mut account, hop, place): (Account, Hop, Second) = seed.sow(&shared.caller())?;
    ready.hop = hop;
    let sent = send(shared, ready, true, &mut account).await.ok()?;
    let begun = answer(sent).await.ok()?;
    Some((begun, account, place))
}
