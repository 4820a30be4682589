//! Tokens and members as other replicas write them: the tables in memory follow the store.
//!
//! Where one replica is alone its own writes are all there are, and nothing is read again.
//!
//! Invariant: a token that was revoked, and a node whose membership was ended, on any replica are so here as soon as the
//! store has said it.

use mesh_registry::store::StoreError;

use super::{Engine, members, tokens};

/// Most changes that are read at once.
const BATCH: usize = 4096;

/// Where it stands.
pub(super) struct Follow {
    at: u64,
}

impl Follow {
    /// Reads all there is.
    pub(super) fn begin(engine: &Engine) -> Result<Self, StoreError> {
        let at = engine.store.revision()?;
        engine.load_tokens()?;
        engine.load_members()?;
        Ok(Self { at })
    }

    /// Takes in what was written since.
    pub(super) fn poll(&mut self, engine: &Engine) -> Result<(), StoreError> {
        if !engine.replicas.shared() {
            return Ok(());
        }
        loop {
            let changes = match engine.store.changes("/", self.at, BATCH) {
                Err(StoreError::Compacted { .. }) => {
                    *self = Self::begin(engine)?;
                    return Ok(());
                }
                changes => changes?,
            };
            self.at = changes.upto;
            if changes.changes.is_empty() {
                return Ok(());
            }
            for change in changes.changes {
                let value = change.entry.as_ref().map(|entry| entry.value.as_slice());
                if let Some(id) = change.key.strip_prefix(tokens::PREFIX) {
                    engine.token_changed(id, value);
                } else if change.key.starts_with(members::PREFIX) {
                    engine.member_changed(&change.key, value);
                }
            }
        }
    }
}
