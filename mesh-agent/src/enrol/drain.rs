//! A workload drains before it leaves: everybody is told to send it nothing new, while it serves what is under way.
//!
//! leave ──weights 0──▶ session ──▶ control plane ──▶ all agents; a while later the workload is withdrawn.
//!
//! Not here: what a weight of 0 means (mesh-core's compile). An agent that dies meanwhile enrols it again as it was.

use std::time::Duration;

use super::wanted::Wanted;
use super::{Enrolments, VERDICT};
use crate::session::Name;

impl Enrolments {
    /// Has nothing new sent to it, and gives what is under way this long.
    pub(super) async fn drain(&self, name: &Name, time: Duration) {
        let inner = &*self.inner;
        let upsert = {
            let table = inner.table.lock().await;
            let Some(live) = table.get(name) else { return };
            let mut upsert = Wanted::of(&live.record).upsert(&inner.settings, &live.record.addresses);
            for membership in &mut upsert.memberships {
                membership.weight = 0;
            }
            upsert
        };
        tracing::info!(namespace = name.0, name = name.1, ?time, "it drains");
        let verdict = inner.session.upsert(upsert).await;
        let begun = tokio::time::Instant::now();
        // While there is no control plane nobody can be told.
        let _ = tokio::time::timeout(VERDICT.min(time), verdict).await;
        tokio::time::sleep_until(begun + time).await;
    }
}
