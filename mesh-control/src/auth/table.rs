//! The tokens that are valid now, in memory.
//!
//! Filled from the store at start and after every write of a token; asked on every request.
//! Long streams watch [`Tokens::changes`] and end when theirs is gone.
//!
//! Not here: storing records (`tokens` in `engine`).

use std::collections::BTreeMap;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::Principal;
use super::token::{self, TokenRecord};

/// All records, by id.
pub struct Tokens {
    records: RwLock<BTreeMap<String, TokenRecord>>,
    version: watch::Sender<u64>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { records: RwLock::default(), version: watch::Sender::new(0) }
    }
}

impl Tokens {
    /// The owner of a bearer text, if it is valid at `now_ms`.
    pub fn authenticate(&self, text: &str, now_ms: u64) -> Option<Principal> {
        let presented = token::parse(text)?;
        let records = self.records.read();
        let record = records.get(presented.id)?;
        (record.accepts(presented.secret) && !record.expired(now_ms)).then(|| Principal::of(record))
    }

    /// Whether the token with this id (authenticated before) is still valid.
    pub fn still_valid(&self, id: &str, now_ms: u64) -> bool {
        self.records.read().get(id).is_some_and(|record| !record.expired(now_ms))
    }

    /// Adds or replaces a record.
    pub fn insert(&self, record: TokenRecord) {
        self.records.write().insert(record.id.clone(), record);
        self.version.send_modify(|version| *version += 1);
    }

    /// Forgets a record.
    pub fn remove(&self, id: &str) {
        self.records.write().remove(id);
        self.version.send_modify(|version| *version += 1);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All records, by id.
    pub fn list(&self) -> Vec<TokenRecord> {
        self.records.read().values().cloned().collect()
    }

    /// Turns at every insertion and removal.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;
    use crate::auth::token::Minted;

    fn record(minted: &Minted, expires_ms: Option<u64>) -> TokenRecord {
        TokenRecord {
            id: minted.id.clone(),
            hash: minted.hash.clone(),
            role: Role::Viewer,
            node: String::new(),
            grants: Vec::new(),
            created_ms: 0,
            expires_ms,
        }
    }

    #[test]
    fn only_the_right_secret_in_time_is_let_in() {
        let (tokens, minted, other) = (Tokens::default(), Minted::new().unwrap(), Minted::new().unwrap());
        tokens.insert(record(&minted, Some(100)));
        let text = minted.api_text();
        assert_eq!(tokens.authenticate(&text, 99).unwrap().role, Role::Viewer);
        assert!(tokens.authenticate(&text, 100).is_none());
        assert!(tokens.authenticate(&other.api_text(), 0).is_none());
        let forged = text.replace(&minted.id, &other.id);
        assert!(tokens.authenticate(&forged, 0).is_none());
        tokens.remove(&minted.id);
        assert!(tokens.authenticate(&text, 99).is_none() && !tokens.still_valid(&minted.id, 0));
    }
}
