//! Open flows, read at most once a second, and the totals that go with them.
//!
//! The order matters: sockets, then totals, then who has ended meanwhile. So no flow is in both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::record::{Totals, TotalsKey};
use parking_lot::Mutex;

use crate::config::Handle as Config;
use crate::kernel::{Kernel, KernelError, OpenFlow};

/// How old a reading may be.
const FRESH: Duration = Duration::from_secs(1);

/// The condition under which open flows are missing.
const CONDITION: &str = "open flows";

/// Totals of ended flows.
pub type Ended = Vec<(TotalsKey, Totals)>;

/// The latest reading. Shared.
pub struct Open {
    kernel: Arc<Kernel>,
    config: Config,
    last: Mutex<Option<(Instant, Arc<Vec<OpenFlow>>)>>,
}

impl Open {
    /// Nothing is read yet.
    pub fn new(kernel: Arc<Kernel>, config: Config) -> Self {
        Self { kernel, config, last: Mutex::default() }
    }

    /// Every open flow and how it stood at most a second ago. Blocks: not for a runtime's thread.
    pub fn read(&self) -> Arc<Vec<OpenFlow>> {
        // One reader at a time: the others find what it found.
        let mut last = self.last.lock();
        if let Some((at, flows)) = &*last
            && at.elapsed() < FRESH
        {
            return flows.clone();
        }
        let flows = match self.kernel.open_flows() {
            Ok(flows) => {
                self.config.conditions().clear(CONDITION);
                Arc::new(flows)
            }
            Err(error) => {
                let line = format!("what they carry is counted only when they end: {error}");
                self.config.conditions().set(CONDITION, line);
                Arc::default()
            }
        };
        *last = Some((Instant::now(), flows.clone()));
        flows
    }

    /// Totals of ended flows, and the open ones that are in none of them. Blocks.
    pub fn with_totals(&self) -> Result<(Ended, Vec<OpenFlow>), KernelError> {
        let flows = self.read();
        let totals = self.kernel.totals()?;
        Ok((totals, flows.iter().filter(|flow| self.kernel.still_open(flow)).copied().collect()))
    }
}
