//! What one workload may use of the agent: connections and buffered bytes. One workload's flood or slowness
//! stays its own.
//!
//! Shared between workers (connections of one workload live on several), so atomics; touched when a
//! connection begins and ends, and when bytes stay behind because their reader is slow, never per request.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Limits of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Connections at once, in and out together.
    pub connections: u32,
    /// Bytes that wait in the agent for a slow reader.
    pub buffered: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { connections: 8192, buffered: 64 << 20 }
    }
}

/// What a workload uses now.
#[derive(Debug, Default)]
pub struct Usage {
    connections: AtomicU32,
    buffered: AtomicU64,
    gone: AtomicBool,
    tunnels: AtomicU32,
}

impl Usage {
    /// Counts one more connection unless that is too many.
    pub fn admit(&self, budget: &Budget) -> bool {
        let before = self.connections.fetch_add(1, Relaxed);
        if before >= budget.connections {
            self.connections.fetch_sub(1, Relaxed);
            return false;
        }
        true
    }

    /// One connection less.
    pub fn release(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Connections now.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Replaces what one direction of a connection holds back (`was` bytes) by `now` bytes; false: over the
    /// budget, and nothing is changed.
    pub fn hold(&self, budget: &Budget, was: u64, now: u64) -> bool {
        if now <= was {
            self.buffered.fetch_sub(was - now, Relaxed);
            return true;
        }
        let more = now - was;
        if self.buffered.fetch_add(more, Relaxed) + more > budget.buffered {
            self.buffered.fetch_sub(more, Relaxed);
            return false;
        }
        true
    }

    /// Bytes held back now.
    pub fn buffered(&self) -> u64 {
        self.buffered.load(Relaxed)
    }

    /// So many more tunnels.
    pub fn tunnels(&self, more: i32) {
        self.tunnels.fetch_add(more as u32, Relaxed);
    }

    /// Bytes that peers may have on their way in one tunnel: all tunnels share what may wait here.
    pub fn share(&self, budget: &Budget) -> u64 {
        budget.buffered / u64::from(self.tunnels.load(Relaxed).max(1))
    }

    /// The workload has left: its connections end.
    pub fn leave(&self) {
        self.gone.store(true, Relaxed);
    }

    /// Has it left?
    pub fn gone(&self) -> bool {
        self.gone.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_admits_so_many_and_takes_them_back() {
        let usage = Usage::default();
        let budget = Budget { connections: 2, buffered: 100 };
        assert!(usage.admit(&budget) && usage.admit(&budget) && !usage.admit(&budget));
        usage.release();
        assert!(usage.admit(&budget));
        assert!(usage.hold(&budget, 0, 60));
        assert!(!usage.hold(&budget, 0, 60), "the second reader is over");
        assert!(usage.hold(&budget, 60, 10));
        assert!(usage.hold(&budget, 0, 60));
        assert_eq!(usage.buffered(), 70);
    }
}
