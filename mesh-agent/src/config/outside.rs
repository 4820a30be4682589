//! What host names outside of the mesh resolve to comes into force as any change does. Not here: resolving
//! ([`crate::external`]).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::oneshot;

use super::owner::Owner;

impl Owner {
    /// Puts in force what is known of all of them.
    pub(super) fn resolved(&mut self, resolved: BTreeMap<String, Vec<IpAddr>>, reply: oneshot::Sender<()>) {
        let began = Instant::now();
        let outcome = self.compiler.resolve(resolved);
        self.publish(outcome, began);
        self.save_soon();
        // An answer that nobody waits for any more is dropped.
        let _ = reply.send(());
    }
}
