//! The tokens that are valid now, in memory.
//!
//! Filled from the store at start and after every write of a token; asked on every request of people, and when a
//! node joins.
//!
//! Not here: storing records (`tokens` in `engine`).

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::Principal;
use super::token::{self, TokenRecord};

/// All records, by id.
#[derive(Default)]
pub struct Tokens {
    records: RwLock<BTreeMap<String, TokenRecord>>,
}

/// Why a text is no valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// Nobody knows it, or not any more.
    Unknown,
    /// Its time is over. Said to who has its secret alone.
    Expired,
}

impl Tokens {
    /// The record of a bearer text that is valid at `now_ms`.
    pub fn find(&self, text: &str, now_ms: u64) -> Result<TokenRecord, NoToken> {
        let presented = token::parse(text.trim()).ok_or(NoToken::Unknown)?;
        let records = self.records.read();
        let record = records.get(presented.id).ok_or(NoToken::Unknown)?;
        if !record.accepts(presented.secret) {
            return Err(NoToken::Unknown);
        }
        if record.expired(now_ms) { Err(NoToken::Expired) } else { Ok(record.clone()) }
    }

    /// The owner of a bearer text that is valid at `now_ms`.
    pub fn authenticate(&self, text: &str, now_ms: u64) -> Result<Principal, NoToken> {
        self.find(text, now_ms).as_ref().map(Principal::of).map_err(|no| *no)
    }

    /// Whether a token that was let in once is still good at `now_ms`.
    pub fn still_good(&self, id: &str, now_ms: u64) -> bool {
        self.records.read().get(id).is_some_and(|record| !record.expired(now_ms))
    }

    /// Adds or replaces a record.
    pub fn insert(&self, record: TokenRecord) {
        self.records.write().insert(record.id.clone(), record);
    }

    /// Forgets a record.
    pub fn remove(&self, id: &str) {
        self.records.write().remove(id);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;
    use crate::auth::token::Minted;

    fn record(minted: &Minted, expires_ms: Option<u64>) -> TokenRecord {
        TokenRecord {
            id: minted.id.clone(),
            name: String::new(),
            hash: minted.hash.clone(),
            role: Role::Viewer,
            node: String::new(),
            grants: Vec::new(),
            created_ms: 0,
            expires_ms,
            single_use: false,
            used_ms: None,
        }
    }

    #[test]
    fn only_the_right_secret_in_time_is_let_in() {
        let (tokens, minted, other) = (Tokens::default(), Minted::new().unwrap(), Minted::new().unwrap());
        tokens.insert(record(&minted, Some(100)));
        let text = minted.api_text();
        assert_eq!(tokens.authenticate(&text, 99).unwrap().role, Role::Viewer);
        assert_eq!(tokens.find(&text, 100), Err(NoToken::Expired));
        assert!(tokens.authenticate(&other.api_text(), 0).is_err());
        let forged = text.replace(&minted.id, &other.id);
        assert!(tokens.authenticate(&forged, 0).is_err());
        assert!(tokens.still_good(&minted.id, 99) && !tokens.still_good(&minted.id, 100));
        tokens.remove(&minted.id);
        assert_eq!(tokens.find(&text, 99), Err(NoToken::Unknown));
    }
}
