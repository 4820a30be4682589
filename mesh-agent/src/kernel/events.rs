//! Ended flows from the ring, in batches.

use std::io;

use aya::maps::{MapData, RingBuf};
use mesh_common::record::FlowEvent;
use tokio::io::unix::AsyncFd;

/// How many records one batch holds at most: what is left stays in the ring.
const BATCH: usize = 1024;

/// The reading end of `FLOW_EVENTS`. One at a time: two would share the records out.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        Ok(Self { ring: crate::sys::watch(ring, tokio::io::Interest::READABLE)? })
    }

    /// Waits for records and appends up to 1024 of them to `out`.
    pub async fn next_batch(&mut self, out: &mut Vec<FlowEvent>) -> io::Result<()> {
        let mut ready = self.ring.readable_mut().await?;
        let ring = ready.get_inner_mut();
        let mut taken = 0;
        while taken < BATCH {
            let Some(item) = ring.next() else { break };
            if let Some(event) = decode(&item) {
                out.push(event);
            }
            taken += 1;
        }
        if taken < BATCH {
            ready.clear_ready();
        }
        Ok(())
    }
}

/// A record of the ring; `None` where it has another size (no program of this ABI writes such).
fn decode(bytes: &[u8]) -> Option<FlowEvent> {
    crate::sys::read_pod(bytes)
}
