//! Time of a worker: one coarse clock, and deadlines that are compared instead of armed.
//!
//! Every connection has a [`Watch`]. Setting a deadline stores a number; the worker's tick looks at all of
//! them a few times a second and wakes those that are due. So a request costs no timer, and a deadline is
//! late by at most one look ([`LOOK_MS`]).
//!
//! A watch also carries the worker's other calls to a connection: it is to be cut, or to look whether the
//! worker drains.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use super::member::Member;

/// Milliseconds between two looks at the deadlines.
pub const LOOK_MS: u64 = 250;

/// Why a connection was woken from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Its deadline has passed.
    Late,
    /// It must end now.
    Cut,
}

/// A connection as its worker's clock sees it.
pub struct Watch {
    deadline: Cell<u64>,
    late: Cell<bool>,
    cut: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    member: Arc<Member>,
}

impl Watch {
    /// Remembers whom to wake. The task of a connection stays the same, so this is one comparison.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match waker.as_ref() {
            Some(w) if w.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    /// Wakes the connection's task.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Cuts this connection.
    pub fn end(&self) {
        if !self.cut.replace(true) {
            self.wake();
        }
    }

    /// No deadline.
    pub fn disarm(&self) {
        self.deadline.set(0);
        self.late.set(false);
    }

    /// Is it to be cut?
    pub fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Ready once the deadline has passed or the connection is to be cut.
    pub fn poll_call(&self, cx: &Context<'_>) -> Poll<Call> {
        if self.cut.get() {
            return Poll::Ready(Call::Cut);
        }
        if self.late.get() {
            return Poll::Ready(Call::Late);
        }
        self.register(cx);
        Poll::Pending
    }

    fn look(&self, now: u64) {
        let deadline = self.deadline.get();
        if deadline != 0 && now >= deadline && !self.late.replace(true) {
            self.wake();
        }
    }
}

/// The clock and the watches of one worker.
pub struct Clock {
    begun: Instant,
    now: Cell<u64>,
    watches: RefCell<Slab<Rc<Watch>>>,
}

impl Clock {
    /// A clock that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self { begun: now, now: Cell::new(1), watches: RefCell::new(Slab::new()) }
    }

    /// Milliseconds since the worker began, as of the last tick. Never 0.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// Moves the clock on.
    pub fn tick(&self, now: Instant) {
        self.now.set(now.duration_since(self.begun).as_millis() as u64 + 1);
    }

    /// Wakes every connection whose deadline has passed.
    pub fn look(&self) {
        let now = self.now();
        for (_, watch) in self.watches.borrow().iter() {
            watch.look(now);
        }
    }

    /// A watch for a connection of this workload.
    pub fn watch(self: &Rc<Self>, member: &Arc<Member>) -> Watched {
        let watch = Rc::new(Watch {
            deadline: Cell::new(0),
            late: Cell::new(false),
            cut: Cell::new(false),
            waker: RefCell::new(None),
            member: member.clone(),
        });
        let key = self.watches.borrow_mut().insert(watch.clone());
        Watched { watch, key, clock: self.clone() }
    }

    /// Arms a deadline `after` from now.
    pub fn arm(&self, watch: &Watch, after: Duration) {
        watch.late.set(false);
        watch.deadline.set(self.now() + after.as_millis() as u64);
    }

    /// Cuts the connections of workloads that have left.
    pub fn cut_gone(&self) {
        self.cut(|watch| watch.member.usage.gone());
    }

    /// Cuts all connections.
    pub fn cut_all(&self) {
        self.cut(|_| true);
    }

    fn cut(&self, which: impl Fn(&Watch) -> bool) {
        for (_, watch) in self.watches.borrow().iter() {
            if which(watch) {
                watch.end();
            }
        }
    }

    /// Wakes all connections, so that they see that their worker drains.
    pub fn wake_all(&self) {
        for (_, watch) in self.watches.borrow().iter() {
            watch.wake();
        }
    }

    /// Connections that are watched.
    pub fn watched(&self) -> usize {
        self.watches.borrow().len()
    }
}

/// A watch that leaves the clock when it drops.
pub struct Watched {
    watch: Rc<Watch>,
    key: usize,
    clock: Rc<Clock>,
}

impl Watched {
    /// The watch, for those who wake this connection's task.
    pub fn rc(&self) -> &Rc<Watch> {
        &self.watch
    }
}

impl std::ops::Deref for Watched {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.clock.watches.borrow_mut().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_seen_at_the_look_after_it() {
        let begun = Instant::now();
        let clock = Rc::new(Clock::new(begun));
        let member = Member::for_tests();
        let watched = clock.watch(&member);
        let cx = Context::from_waker(Waker::noop());
        clock.arm(&watched, Duration::from_secs(1));
        clock.tick(begun + Duration::from_millis(900));
        clock.look();
        assert!(watched.poll_call(&cx).is_pending());
        clock.tick(begun + Duration::from_millis(1100));
        clock.look();
        assert_eq!(watched.poll_call(&cx), Poll::Ready(Call::Late));
        watched.disarm();
        assert!(watched.poll_call(&cx).is_pending());
        clock.cut_gone();
        assert!(watched.poll_call(&cx).is_pending());
        member.usage.leave();
        clock.cut_gone();
        assert_eq!(watched.poll_call(&cx), Poll::Ready(Call::Cut));
        drop(watched);
        assert_eq!(clock.watched(), 0);
    }
}
