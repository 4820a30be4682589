//! Tokens that were found good, so that the next request with the same one does not check its signature again.
//!
//! Two generations: what is asked for moves to the younger one; when that is full, the older one is forgotten. So what
//! is in use stays, and what came once goes, in constant time.
//!
//! Invariants: a token is known by its SHA-256; what a provider's earlier keys, issuer or audiences have let through is
//! not given out; nothing is given out after its time. Tokens that were refused are not remembered.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::jwt::{Provider, Token};
use sha2::{Digest, Sha256};

/// Tokens of a generation.
const GENERATION: usize = 512;

pub(super) type Key = [u8; 32];

struct Entry {
    token: Arc<Token>,
    /// Unix seconds.
    until: u64,
}

#[derive(Default)]
pub(super) struct Cache {
    young: HashMap<Key, Entry>,
    old: HashMap<Key, Entry>,
}

/// What a token is known by.
pub(super) fn key(token: &[u8]) -> Key {
    Sha256::digest(token).into()
}

impl Cache {
    /// A token that a provider has taken which is `asked` now.
    pub fn get(&mut self, key: &Key, asked: impl Fn(&Provider) -> bool, now: u64) -> Option<Arc<Token>> {
        if !self.young.contains_key(key) {
            let entry = self.old.remove(key)?;
            self.insert(*key, entry);
        }
        let entry = self.young.get(key)?;
        (now < entry.until && asked(&entry.token.provider)).then(|| entry.token.clone())
    }

    /// Remembers it.
    pub fn put(&mut self, key: Key, token: Arc<Token>, until: u64) {
        self.insert(key, Entry { token, until });
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, entry);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}
