//! What the programs note of datagrams: who sends them (`UDP_SENDERS`), and who began (`UDP_ASKED`).
//!
//! The programs write both maps; from here come the proofs of sockets that were connected before anybody asked, and
//! what a workload leaves behind goes.

use mesh_common::flows::COOKIE;
use mesh_common::record::FlowKey;
use mesh_common::sender::{SEEN, Sender};

use super::Kernel;
use super::error::KernelError;
use super::maps::ignore_missing;
use crate::sys::monotonic_ns;

impl Kernel {
    /// Says whose a connected socket is that was found: `sender` but for what says how long that holds. A proof that
    /// the programs have left and that still holds stays. `true`: it was written.
    pub fn saw_sender(&self, flow: &FlowKey, sender: Sender) -> Result<bool, KernelError> {
        let senders = &mut *self.senders.lock();
        let now = monotonic_ns();
        let kept =
            |held: &Sender| held.cookie != SEEN && held.workload == sender.workload && self.proves(held, now);
        if senders.get(flow, 0).as_ref().is_ok_and(kept) {
            return Ok(false);
        }
        let value = Sender { at_ns: now, cookie: SEEN, ..sender };
        let put = senders.insert(flow, value, 0);
        put.map(|()| true).map_err(|e| KernelError::new("map UDP_SENDERS, insert", e))
    }

    /// Who sends datagrams from there, if that is proved.
    pub fn sender_of(&self, flow: &FlowKey) -> Option<Sender> {
        let held = self.senders.lock().get(flow, 0).ok();
        held.filter(|held| self.proves(held, monotonic_ns()))
    }

    fn proves(&self, held: &Sender, now: u64) -> bool {
        held.proves(now, |cookie| self.flows.get(cookie & COOKIE).map(|flow| flow.start_ns))
    }

    /// Forgets what was noted of a workload's datagrams.
    pub(super) fn forget_datagrams(&self, workload: u32) -> Result<(), KernelError> {
        let failed = |e| KernelError::new("map UDP_SENDERS, remove", e);
        let mut senders = self.senders.lock();
        // What goes or moves under the walk was used just now, and not by who has left.
        let of = senders.iter().flatten().filter(|(_, sender)| sender.workload == workload);
        for key in of.map(|(key, _)| key).collect::<Vec<FlowKey>>() {
            ignore_missing(senders.remove(&key)).map_err(failed)?;
        }
        let failed = |e| KernelError::new("map UDP_ASKED, remove", e);
        let mut asked = self.asked.lock();
        for key in asked.keys().flatten().filter(|key| key.workload == workload).collect::<Vec<_>>() {
            ignore_missing(asked.remove(&key)).map_err(failed)?;
        }
        Ok(())
    }
}
