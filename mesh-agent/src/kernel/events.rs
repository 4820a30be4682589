//! Ended flows from the ring, in batches.

use std::io;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_common::record::FlowEvent;
use tokio::io::unix::AsyncFd;

/// How many records one batch holds at most: what is left stays in the ring.
const BATCH: usize = 1024;

/// How long records wait at most.
const LOOK: Duration = Duration::from_millis(100);

/// The reading end of `FLOW_EVENTS`. One at a time: two would share the records out.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Events {
    /// Must be called inside a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        Ok(Self { ring: crate::sys::watch(ring, tokio::io::Interest::READABLE)? })
    }

    /// Waits for records and appends up to 1024 of them to `out`. The programs wake nobody before the ring is
    /// a good part full, so this looks by itself every [`LOOK`] as well; `out` may stay empty.
    pub async fn next_batch(&mut self, out: &mut Vec<FlowEvent>) -> io::Result<()> {
        match tokio::time::timeout(LOOK, self.ring.readable_mut()).await {
            Ok(ready) => {
                let mut ready = ready?;
                if drain(ready.get_inner_mut(), out) < BATCH {
                    ready.clear_ready();
                }
            }
            Err(_) => drop(drain(self.ring.get_mut(), out)),
        }
        Ok(())
    }
}

/// Moves up to [`BATCH`] records to `out`; how many.
fn drain(ring: &mut RingBuf<MapData>, out: &mut Vec<FlowEvent>) -> usize {
    let mut taken = 0;
    while taken < BATCH {
        let Some(item) = ring.next() else { break };
        out.extend(decode(&item));
        taken += 1;
    }
    taken
}

/// A record of the ring; `None` where it has another size (no program of this ABI writes such).
fn decode(bytes: &[u8]) -> Option<FlowEvent> {
    crate::sys::read_pod(bytes)
}
