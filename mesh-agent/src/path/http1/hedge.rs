//! A request that is slow to be answered is sent to a second endpoint; whose answer begins first has the client.
//!
//! Both exchanges share the client's link. The first byte of an answer takes the [`Claim`]; the other exchange is dropped,
//! and its connection with it. A failure before that is silent while the other one is under way.
//!
//! Invariant: exactly one of the two writes to the client, our own answer included.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use mesh_core::error::ProxyError;
use mesh_core::http1::{Framing, MethodKind, RequestFacts, Side};

use super::super::authorise::Whose;
use super::super::buffers::Buf;
use super::super::intercept::Session;
use super::super::member::Held;
use super::super::pump::Pump;
use super::super::resilience::hedge::Seed;
use super::super::routing::{Account, Deadline};
use super::Connection;
use super::acquire::Acquired;
use super::exchange::{Exchange, Outcome};
use super::request::Prepared;

/// One of two exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    First,
    Second,
}

/// Whose the client is.
#[derive(Default)]
pub(super) struct Claim {
    owner: Cell<Option<Which>>,
    /// The second one is under way.
    both: Cell<bool>,
}

/// An exchange's part in it.
pub(super) struct Part(Rc<Claim>, Which);

impl Part {
    /// Takes the client, if nobody has.
    pub fn take(&self) -> bool {
        let owner = self.0.owner.get().unwrap_or(self.1);
        self.0.owner.set(Some(owner));
        owner == self.1
    }

    /// Is there another that may still answer?
    pub fn yields(&self) -> bool {
        self.0.owner.get() != Some(self.1) && (self.0.both.get() || self.1 == Which::Second)
    }
}

impl Prepared {
    /// May it be sent twice?
    fn may_double(&self) -> bool {
        self.repeatable && self.body.is_done() && !self.facts.may_switch()
    }

    /// The same for another endpoint, which is asked of the request as it came.
    fn twin(&self, connection: &Connection) -> Self {
        let worker = &connection.session.worker;
        let mut out: Buf = worker.buffers.fitting(self.out.len());
        out.bytes().extend_from_slice(self.out.data());
        Self {
            facts: self.facts,
            repeatable: true,
            out,
            head: self.head,
            asked: self.asked.clone(),
            body: Pump::new(Framing::None, Side::Client, &worker.limits.http),
            hop: self.hop,
            backend: self.backend.clone(),
            edits: self.edits.clone(),
            granted: None,
            terms: None,
        }
    }
}

/// What a second request would come from; `None`: there will be none.
pub(super) fn seed(acquired: &Acquired, prepared: &Prepared, account: &Account) -> Option<Seed> {
    account.ticket.as_ref()?;
    let service = prepared.backend.as_ref().filter(|_| prepared.may_double())?;
    account.seed(service, &acquired.hop)
}

impl Connection {
    /// One request and its response, with a second one where the first takes long.
    pub(super) async fn hedged(
        &self,
        seed: Seed,
        acquired: Acquired,
        prepared: Prepared,
        account: &mut Account,
    ) -> Outcome {
        let (claim, facts) = (Rc::new(Claim::default()), prepared.facts);
        let deadline = prepared.terms.as_ref().and_then(|terms| terms.deadline());
        let twin = prepared.twin(self);
        let part = |which| Some(Part(claim.clone(), which));
        let (outcome, won) = {
            let first = Exchange::new(self, acquired, prepared).with(part(Which::First)).run(account);
            let second = self.second(&seed, twin, deadline, &claim);
            race(first, second, &claim).await
        };
        self.session.watch.disarm();
        if let Some(won) = won {
            account.overtaken(&self.caller(), *won);
        }
        match outcome {
            Outcome::Lost(error) => self.nobody(error, facts, account),
            outcome => outcome,
        }
    }

    /// Neither has an answer.
    fn nobody(&self, error: ProxyError, facts: RequestFacts, account: &mut Account) -> Outcome {
        account.failed(error);
        let keep = facts.keep_alive && error.keeps_client() && !self.session.worker.draining.get();
        self.reply(error, keep, facts.method == MethodKind::Head);
        if keep { Outcome::Next } else { Outcome::Close }
    }

    /// The second exchange, from its wait on.
    async fn second(
        &self,
        seed: &Seed,
        mut prepared: Prepared,
        deadline: Option<Deadline>,
        claim: &Rc<Claim>,
    ) -> (Outcome, Option<Box<Account>>) {
        tokio::time::sleep(seed.after).await;
        let Some((mut account, hop, _place)) = seed.sow(&self.caller()) else {
            return (Outcome::Lost(ProxyError::NoEndpoints), None);
        };
        claim.both.set(true);
        let own = Self { session: self.session.twin(), own: RefCell::default() };
        prepared.hop = hop;
        let outcome = match own.acquire(prepared, &mut account).await {
            Ok((acquired, sent)) => {
                let exchange =
                    Exchange::new(&own, acquired, sent).with(Some(Part(claim.clone(), Which::Second)));
                exchange.until(deadline).run(&mut account).await
            }
            Err(error) => Outcome::Lost(error),
        };
        (outcome, Some(Box::new(account)))
    }
}

impl Session {
    /// The same client's, with deadlines and a budget of held bytes of its own.
    fn twin(&self) -> Self {
        Self {
            worker: self.worker.clone(),
            member: self.member.clone(),
            direction: self.direction,
            to: self.to,
            whose: Whose::Member,
            prefer_v6: self.prefer_v6,
            client: self.client.clone(),
            watch: self.worker.clock.watch(&self.member),
            held: Held::new(&self.member),
        }
    }
}

/// Both, until one has the client or neither will; the account of the second one where that is whose it is.
async fn race(
    first: impl Future<Output = Outcome>,
    second: impl Future<Output = (Outcome, Option<Box<Account>>)>,
    claim: &Claim,
) -> (Outcome, Option<Box<Account>>) {
    let mut first = pin!(Some(first));
    let mut second = pin!(Some(second));
    let mut lost = None;
    poll_fn(|cx| {
        if let Some(running) = first.as_mut().as_pin_mut()
            && let Poll::Ready(outcome) = running.poll(cx)
        {
            first.set(None);
            match outcome {
                Outcome::Lost(error) => lost = Some(error),
                outcome => return Poll::Ready((outcome, None)),
            }
        }
        if claim.owner.get() == Some(Which::First) {
            second.set(None);
        }
        if let Some(running) = second.as_mut().as_pin_mut()
            && let Poll::Ready((outcome, account)) = running.poll(cx)
        {
            second.set(None);
            claim.both.set(false);
            if !matches!(outcome, Outcome::Lost(_)) {
                return Poll::Ready((outcome, account));
            }
        }
        if claim.owner.get() == Some(Which::Second) {
            first.set(None);
        }
        match lost {
            Some(error) if second.is_none() => Poll::Ready((Outcome::Lost(error), None)),
            _ => Poll::Pending,
        }
    })
    .await
}
