//! How many requests to a service are in flight, and the line of those that wait for a turn. Shared by all workers.
//!
//! While there is room and nobody waits, a request costs one atomic word at its beginning and one at its end. Who waits
//! stands in line and is called when somebody leaves; who was called and finds no room stands in front again.
//!
//! Invariants: no more wait than may; who stops waiting is out of the line; a call that somebody has got and does not use
//! goes to the next.
//! Not here: what becomes of a request (mesh-core's admission).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use mesh_core::error::ProxyError;
use mesh_core::resilience::admission::{Admission, Limits};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The gate of one service.
#[derive(Debug, Default)]
pub struct Gate {
    active: AtomicU32,
    waiting: AtomicU32,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    stands: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// One that waits.
pub struct Waiter<'g> {
    gate: &'g Gate,
    limits: Limits,
    number: u64,
    /// It has stood in line.
    stood: bool,
    entered: bool,
}

impl Gate {
    /// Requests in flight.
    pub fn active(&self) -> u32 {
        self.active.load(SeqCst)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    /// Lets one in that has just come; `false`: there is no room, or others wait.
    pub fn enter(&self, limits: &Limits) -> bool {
        self.pass(|active| limits.admit(active, self.waiting()) == Admission::Now)
    }

    /// Lets one in that was called.
    pub fn enter_called(&self, limits: &Limits) -> bool {
        self.pass(|active| limits.has_room(active))
    }

    fn pass(&self, may: impl Fn(u32) -> bool) -> bool {
        self.active.fetch_update(SeqCst, SeqCst, |active| may(active).then_some(active + 1)).is_ok()
    }

    /// One has ended: whoever waits is called.
    pub fn leave(&self) {
        self.back_out();
        self.nudge();
    }

    /// One that was let in has found no endpoint with room: that calls nobody.
    pub fn back_out(&self) {
        self.active.fetch_sub(1, SeqCst);
    }

    /// There may be room: whoever waits first is called.
    pub fn nudge(&self) {
        if self.waiting() > 0 {
            self.call();
        }
    }

    fn call(&self) {
        let mut line = self.line.lock();
        while let Some((_, ear)) = line.stands.pop_front() {
            if ear.send(()).is_ok() {
                return;
            }
        }
    }

    /// One that waits, where one more may.
    pub fn join(&self, limits: &Limits) -> Result<Waiter<'_>, ProxyError> {
        let joins = |waiting: u32| match limits.full(waiting) {
            Admission::Refused(_) => None,
            Admission::Now | Admission::Wait => Some(waiting + 1),
        };
        match self.waiting.fetch_update(SeqCst, SeqCst, joins) {
            Ok(_) => {
                let number = {
                    let mut line = self.line.lock();
                    line.next += 1;
                    line.next
                };
                Ok(Waiter { gate: self, limits: *limits, number, stood: false, entered: false })
            }
            Err(waiting) => Err(match limits.full(waiting) {
                Admission::Refused(error) => error,
                Admission::Now | Admission::Wait => ProxyError::QueueFull,
            }),
        }
    }
}

impl Waiter<'_> {
    /// Stands in line: behind all others, or in front where it has been called before. With whether it is first, and may
    /// try before it is called.
    pub fn stand(&mut self) -> (oneshot::Receiver<()>, bool) {
        let (ear, call) = oneshot::channel();
        let mut line = self.gate.line.lock();
        let first = self.stood || line.stands.is_empty();
        if std::mem::replace(&mut self.stood, true) {
            line.stands.push_front((self.number, ear));
        } else {
            line.stands.push_back((self.number, ear));
        }
        (call, first)
    }

    /// It is in.
    pub fn entered(&mut self) {
        self.entered = true;
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let called = {
            let mut line = self.gate.line.lock();
            let before = line.stands.len();
            line.stands.retain(|(number, _)| *number != self.number);
            self.stood && line.stands.len() == before
        };
        self.gate.waiting.fetch_sub(1, SeqCst);
        // Room that is left, and a call that was not used, are the next one's.
        let passes_on = if self.entered { self.limits.has_room(self.gate.active()) } else { called };
        if passes_on {
            self.gate.nudge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits(requests: u32, pending: u32) -> Limits {
        Limits { requests, per_endpoint: 0, pending, wait: Duration::from_secs(1) }
    }

    #[test]
    fn who_waits_is_called_in_turn_and_who_comes_does_not_overtake() {
        let (gate, limits) = (Gate::default(), limits(1, 2));
        assert!(gate.enter(&limits) && !gate.enter(&limits));
        let (mut one, mut other) = (gate.join(&limits).unwrap(), gate.join(&limits).unwrap());
        assert_eq!(gate.join(&limits).err(), Some(ProxyError::QueueFull));
        let ((mut first, alone), (mut second, behind)) = (one.stand(), other.stand());
        assert!(alone && !behind);
        gate.leave();
        assert!(first.try_recv().is_ok() && second.try_recv().is_err());
        assert!(!gate.enter(&limits), "others wait");
        assert!(gate.enter_called(&limits));
        one.entered();
        drop(one);
        assert!(second.try_recv().is_err(), "there is no room");
        gate.leave();
        assert!(second.try_recv().is_ok());
    }

    #[test]
    fn a_call_that_is_not_used_goes_to_the_next() {
        let (gate, limits) = (Gate::default(), limits(1, 3));
        assert!(gate.enter(&limits));
        let (mut one, mut two, mut three) =
            (gate.join(&limits).unwrap(), gate.join(&limits).unwrap(), gate.join(&limits).unwrap());
        let (_, _) = (one.stand(), two.stand());
        let (mut called, _) = three.stand();
        // The second gives up while it stands, the first after it was called.
        drop(two);
        gate.leave();
        drop(one);
        assert!(called.try_recv().is_ok());
        assert_eq!((gate.waiting(), gate.active()), (1, 0));
        drop(three);
        assert!(gate.line.lock().stands.is_empty() && gate.waiting() == 0);
        assert_eq!(gate.join(&super::tests::limits(1, 0)).err(), Some(ProxyError::LimitRequests));
    }

    #[test]
    fn many_threads_never_pass_the_bound() {
        let gate = Gate::default();
        let limits = limits(3, 0);
        let most = AtomicU32::new(0);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..20_000 {
                        if gate.enter(&limits) {
                            most.fetch_max(gate.active(), SeqCst);
                            gate.leave();
                        }
                    }
                });
            }
        });
        assert_eq!(gate.active(), 0);
        assert!((1..=3).contains(&most.into_inner()));
    }
}
