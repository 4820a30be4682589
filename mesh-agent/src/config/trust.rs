//! Tells who holds certificates whom to believe: the trust bundle among the resources, whenever it changes.

use std::sync::Arc;

use mesh_api::proto::v1;
use mesh_core::model::Model;
use tokio::sync::watch;

/// Told last.
pub(super) struct Trust(watch::Sender<Arc<v1::TrustBundle>>);

impl Trust {
    /// Nothing yet, and who listens.
    pub fn new() -> (Self, watch::Receiver<Arc<v1::TrustBundle>>) {
        let (sender, receiver) = watch::channel(Arc::default());
        (Self(sender), receiver)
    }

    /// Tells what there is, if it is new. A bundle that is gone stays in force: nobody else may be believed.
    pub fn follow(&self, model: &Model) {
        if let Some(bundle) = model.trust_bundle() {
            self.0.send_if_modified(|told| {
                let new = **told != bundle;
                if new {
                    *told = Arc::new(bundle);
                }
                new
            });
        }
    }
}
