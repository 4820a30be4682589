//! How often and for how long a request is tried, where its route says so: deadlines, retries, waits.
//!
//! A request that may be tried again is kept as it was sent: of HTTP/1 those whose whole body had come with their head, of
//! HTTP/2 those whose body is not too long ([`super::http2`]). A second try goes to another endpoint where there is one.
//!
//! Not here: which answers are tried again and how many may be (mesh-core's retry).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::error::ProxyError;
use mesh_core::retry;
use mesh_core::route::Action;
use mesh_core::snapshot::Service;
use tokio::time::{Instant, sleep};

use super::intercept::Hop;
use super::routing::{Caller, Deadline, nearest, within};
use super::worker::Worker;

/// Endpoints that are remembered as tried.
const TRIED: usize = 10;

/// Requests of a worker that may be tried again, and how many are at a second try, by service.
#[derive(Default)]
pub struct Retries(RefCell<HashMap<u32, (u32, u32)>>);

/// One such request.
struct Counted {
    worker: Rc<Worker>,
    service: u32,
    retrying: bool,
}

impl Counted {
    fn new(worker: &Rc<Worker>, service: u32) -> Self {
        worker.retries.0.borrow_mut().entry(service).or_default().0 += 1;
        Self { worker: worker.clone(), service, retrying: false }
    }

    /// May it be tried again? Counted as a retry from now on.
    fn retry(&mut self) -> bool {
        let mut counts = self.worker.retries.0.borrow_mut();
        let (active, retrying) = counts.entry(self.service).or_default();
        if !self.retrying && !retry::admits(*active, *retrying) {
            return false;
        }
        *retrying += u32::from(!std::mem::replace(&mut self.retrying, true));
        true
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.worker.retries.0.borrow_mut();
        let Some((active, retrying)) = counts.get_mut(&self.service) else { return };
        *active -= 1;
        *retrying -= u32::from(self.retrying);
        if *active == 0 {
            counts.remove(&self.service);
        }
    }
}

/// What a route says of one request.
pub struct Terms {
    action: Arc<Action>,
    /// Of all tries together.
    whole: Option<Instant>,
    /// Of the try that is made.
    one: Option<Instant>,
    /// `None`: it is never tried again.
    counted: Option<Counted>,
    tried: [u32; TRIED],
    tries: u8,
    /// The try that was made last is followed by another.
    again: bool,
    /// After this status.
    refused: u16,
}

impl Terms {
    /// `None`: the route says nothing of it. `whole`: all of the request is there, or is kept as it comes.
    pub fn new(worker: &Rc<Worker>, action: &Arc<Action>, service: u32, whole: bool) -> Option<Box<Self>> {
        if action.timeout.is_none() && action.try_timeout.is_none() && action.retry.is_none() {
            return None;
        }
        let again = whole && action.retry.as_ref().is_some_and(|retry| retry.attempts > 0);
        Some(Box::new(Self {
            action: action.clone(),
            whole: action.timeout.map(|timeout| Instant::now() + timeout),
            one: None,
            counted: again.then(|| Counted::new(worker, service)),
            tried: [0; TRIED],
            tries: 0,
            again: false,
            refused: 0,
        }))
    }

    /// A try begins.
    pub fn begin(&mut self) {
        self.again = false;
        self.one = self.action.try_timeout.map(|timeout| Instant::now() + timeout);
    }

    /// When the try that is made must have ended, and as what it fails then.
    pub fn deadline(&self) -> Option<Deadline> {
        nearest(self.one, self.whole)
    }

    /// Is its request kept until its answer is known?
    pub fn keeps(&self) -> bool {
        let retry = self.action.retry.as_ref();
        self.counted.is_some() && retry.is_some_and(|retry| self.tries < retry.attempts)
    }

    /// Is an answer of this status thrown away, and the request tried again? Counted as such if so.
    pub fn again(&mut self, status: u16, endpoint: u32) -> bool {
        let Some(retry) = &self.action.retry else { return false };
        let Some(counted) = &mut self.counted else { return false };
        if !retry::wanted(retry, self.tries, status) || !counted.retry() {
            return false;
        }
        self.tried[usize::from(self.tries) % TRIED] = endpoint;
        self.tries += 1;
        self.again = true;
        self.refused = status;
        true
    }

    /// Was that said of the try that was made last?
    pub fn is_again(&self) -> bool {
        self.again
    }

    /// After which status?
    pub fn refused(&self) -> u16 {
        self.refused
    }

    fn wait(&self) -> Duration {
        let retry = self.action.retry.as_ref();
        retry.map_or(Duration::ZERO, |retry| retry::wait(retry, self.tries, fastrand::u64(..)))
    }
}

impl Terms {
    /// Waits before the next try, and says where that goes; `Err`: it must not be made any more. `cut` ends the wait.
    pub async fn next(
        &self,
        caller: &Caller<'_>,
        backend: Option<&Arc<Service>>,
        last: Hop,
        cut: impl Future<Output = ()>,
    ) -> Result<Hop, ProxyError> {
        within(self.whole.map(|at| (at, ProxyError::RequestTimeout)), async {
            tokio::select! {
                () = sleep(self.wait()) => Ok(()),
                () = cut => Err(ProxyError::Draining),
            }
        })
        .await?;
        let Some(service) = backend else { return Ok(last) };
        let tried = &self.tried[..usize::from(self.tries).min(TRIED)];
        // Where all were tried, whoever's turn it is.
        caller.other(service, tried).map_or_else(|| caller.balance(service), Ok)
    }
}
