//! What was let in and is no HTTP any more: asked about again when policies change.
//!
//! intercept, http1, tunnels ──[`Judged::add`]──▶ **judged** ──sweep, other policies──▶ authorise ──no──▶ cut
//!
//! A provider of external authorisation is not asked again: what it let in stays until rules say otherwise.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;

use super::authorise::{Whose, opaque, still};
use super::clock::Watch;
use super::intercept::Hop;
use super::member::Member;
use super::worker::Worker;

/// Connections that carry opaque bytes because a policy allowed it, or a request that began them.
#[derive(Default)]
pub struct Judged(RefCell<Slab<One>>);

struct One {
    member: Arc<Member>,
    whose: Whose,
    hop: Hop,
    /// The request that it was before.
    head: Option<Box<[u8]>>,
    watch: Rc<Watch>,
}

impl Judged {
    /// One that is allowed now; for as long as what is returned lives, policies that change end it.
    pub fn add(
        worker: &Rc<Worker>,
        (member, whose): (&Arc<Member>, &Whose),
        hop: Hop,
        head: Option<Box<[u8]>>,
        watch: &Rc<Watch>,
    ) -> impl Drop + use<> {
        let one = One { member: member.clone(), whose: whose.clone(), hop, head, watch: watch.clone() };
        let key = worker.judged.0.borrow_mut().insert(one);
        Standing { worker: worker.clone(), key }
    }

    /// Ends those that are not allowed any more.
    pub fn judge(&self, worker: &Worker) {
        for (_, one) in self.0.borrow().iter() {
            let allowed = match &one.head {
                Some(head) => still(worker, &one.member, &one.whose, &one.hop, head),
                None => opaque(worker, &one.member, &one.whose, &one.hop).is_ok(),
            };
            if !allowed {
                one.watch.end();
            }
        }
    }
}

struct Standing {
    worker: Rc<Worker>,
    key: usize,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.worker.judged.0.borrow_mut().try_remove(self.key);
    }
}
