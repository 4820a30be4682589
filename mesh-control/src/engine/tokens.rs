//! Tokens in the store, and the first one.
//!
//! Key `/tokens/<id>`, value the record as JSON. The table in memory follows the writes of this process, and those of
//! other replicas as the store tells them (`follow`).

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_api::error::{ApiError, Reason};
use mesh_registry::intent::WriteError;
use mesh_registry::store::{StoreError, Txn};

use super::Engine;
use crate::auth::Role;
use crate::auth::token::TokenRecord;
use crate::clock::unix_ms;

pub(super) const PREFIX: &str = "/tokens/";
/// Key of a token.
pub(super) fn token_key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// How many tokens there may be.
const TOKENS_MAX: usize = 16_384;

impl Engine {
    /// Reads all records, and forgets those that are no more.
    pub(super) fn load_tokens(&self) -> Result<(), StoreError> {
        let mut there = BTreeSet::new();
        for entry in self.store.range(PREFIX, None)?.entries {
            let record: TokenRecord = serde_json::from_slice(&entry.value)
                .map_err(|cause| StoreError::Corrupt { path: entry.key, cause: cause.to_string() })?;
            there.insert(record.id.clone());
            self.tokens.insert(record);
        }
        for gone in self.tokens.list().into_iter().filter(|record| !there.contains(&record.id)) {
            self.tokens.remove(&gone.id);
        }
        Ok(())
    }

    /// Another replica wrote or revoked a token.
    pub(super) fn token_changed(&self, id: &str, value: Option<&[u8]>) {
        match value.map(serde_json::from_slice) {
            None => self.tokens.remove(id),
            Some(Ok(record)) => self.tokens.insert(record),
            Some(Err(error)) => {
                tracing::error!(id, %error, "a token's record cannot be read and is left out");
            }
        }
    }

    /// Whether somebody can make tokens.
    pub fn has_admin(&self) -> bool {
        let now = unix_ms();
        self.tokens.list().iter().any(|record| record.role == Role::Admin && !record.expired(now))
    }

    /// Stores a token; it is valid from the answer on.
    pub async fn add_token(self: &Arc<Self>, record: TokenRecord) -> Result<(), WriteError> {
        self.blocking(move |engine| {
            if engine.tokens.len() >= TOKENS_MAX {
                let error = ApiError::new(Reason::Exhausted, "", TOKENS_MAX.into(), "fewer tokens");
                return Err(error.saying(format!("there are {TOKENS_MAX} tokens; revoke some first")).into());
            }
            let key = token_key(&record.id);
            let value = serde_json::to_vec(&record).map_err(|cause| StoreError::Failed {
                operation: "write a token",
                cause: cause.to_string(),
            })?;
            engine.commit(|| {
                Ok(engine.store.transact(Txn::default().if_at(key.clone(), 0).put(key, value))?)
            })?;
            engine.tokens.insert(record);
            Ok(())
        })
        .await
    }

    /// Ends a token, and the membership of the node that joined by it; false: there is none with this id. The
    /// node's streams end at once.
    pub async fn revoke_token(self: &Arc<Self>, id: String) -> Result<bool, WriteError> {
        self.blocking(move |engine| {
            let key = token_key(&id);
            if engine.store.get(&key)?.is_none() {
                return Ok(false);
            }
            engine.commit(|| Ok(engine.store.transact(Txn::default().delete(key))?))?;
            engine.tokens.remove(&id);
            engine.revoke_joined_by(&id)?;
            Ok(true)
        })
        .await
    }
}
