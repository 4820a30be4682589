//! Tokens of requests: found, checked, remembered; a worker's own.
//!
//! ```text
//! request's head ─▶ **jwt**: where is a token, whose is it ─▶ [`cache`], else [`verify`] ─▶ Token ─▶ authorise
//!                     └─ providers and their keys: the snapshot
//! ```
//!
//! A request may carry one token in each header that its workload's policies look for one in. A token that is there and
//! is not good refuses the request, whatever policies say of requests without one.
//!
//! Invariants: what is remembered is bounded, and void with the provider's stamp (its keys, issuer, audiences); the
//! network is never asked. Cost of a remembered token: one SHA-256 of it.
//! Not here: what policies ask of tokens (mesh-core's jwt), who fetches keys (mesh-control).

mod cache;
mod verify;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use mesh_core::authorise::Headers;
use mesh_core::jwt::{JwtError, Provider, Token};

use cache::Cache;
use verify::Keys;

/// Sets of keys that are ready for use, of one worker.
const KEYS_MAX: usize = 64;

/// What a worker knows of tokens.
#[derive(Default)]
pub struct Tokens {
    cache: RefCell<Cache>,
    /// By the provider's stamp.
    keys: RefCell<HashMap<u64, Rc<Keys>>>,
}

/// What was found in a request.
#[derive(Debug, Default)]
pub struct Found {
    /// Good tokens, at most one of each provider.
    pub tokens: Vec<Arc<Token>>,
    /// Of those the ones that had to be checked anew.
    pub checked: u64,
}

impl Tokens {
    /// The tokens that a request carries for these providers, at `now` (Unix seconds).
    pub fn find(&self, providers: &[Arc<Provider>], head: &dyn Headers, now: u64) -> Result<Found, JwtError> {
        let mut found = Found::default();
        let mut seen: Vec<Box<[u8]>> = Vec::new();
        for provider in providers {
            let Some(text) = carried(provider, head)? else { continue };
            if seen.contains(&text) {
                continue;
            }
            let (token, checked) = self.check(providers, provider, &text, now)?;
            found.checked += u64::from(checked);
            found.tokens.push(token);
            seen.push(text);
        }
        Ok(found)
    }

    /// A token that was found where `at` looks for one; and whether it had to be checked anew.
    fn check(
        &self,
        providers: &[Arc<Provider>],
        at: &Arc<Provider>,
        text: &[u8],
        now: u64,
    ) -> Result<(Arc<Token>, bool), JwtError> {
        let looks = |one: &&Arc<Provider>| one.headers.iter().any(|header| at.headers.contains(header));
        let asked = |stamp| providers.iter().filter(looks).any(|one| one.stamp == stamp);
        let key = cache::key(text);
        if let Some(token) = self.cache.borrow_mut().get(&key, |provider| asked(provider.stamp), now) {
            return Ok((token, false));
        }
        let parts = verify::Parts::read(text)?;
        // Of all that look there the first that takes it; else what the last one says that issues such tokens.
        let mut taken = Err(JwtError::Issuer);
        for provider in providers.iter().filter(looks) {
            match provider.takes(&parts.claims, now) {
                Ok(until) => {
                    taken = Ok((provider, until));
                    break;
                }
                Err(JwtError::Issuer) => {}
                Err(error) => taken = Err(error),
            }
        }
        let (provider, until) = taken?;
        parts.verify(&*self.keys(provider)?)?;
        let token = Arc::new(Token { provider: provider.clone(), claims: parts.claims });
        self.cache.borrow_mut().put(key, token.clone(), until);
        Ok((token, true))
    }

    fn keys(&self, provider: &Provider) -> Result<Rc<Keys>, JwtError> {
        let mut held = self.keys.borrow_mut();
        if let Some(keys) = held.get(&provider.stamp) {
            return Ok(keys.clone());
        }
        let keys = Rc::new(Keys::new(provider.keys.as_deref().ok_or(JwtError::NoKeys)?));
        if held.len() >= KEYS_MAX {
            held.clear();
        }
        held.insert(provider.stamp, keys.clone());
        Ok(keys)
    }
}

/// The token in the first of the provider's headers that is there.
fn carried(provider: &Provider, head: &dyn Headers) -> Result<Option<Box<[u8]>>, JwtError> {
    for (name, prefix) in &provider.headers {
        let mut token = Ok(None);
        head.each(&mut |field, value| {
            let there = field.eq_ignore_ascii_case(name.as_bytes())
                && value
                    .get(..prefix.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()));
            if there {
                token = match token {
                    // Whoever is behind us might read the other one.
                    Ok(Some(_)) | Err(_) => Err(JwtError::Malformed),
                    Ok(None) => Ok(Some(Box::from(value[prefix.len()..].trim_ascii()))),
                };
            }
        });
        if let Some(token) = token? {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
