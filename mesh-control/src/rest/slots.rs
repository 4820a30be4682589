//! How many answers may wait at once: watches and long polls, over all and a token.
//!
//! Invariant: a place is given back when what holds it is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::error::Refused;

/// Over all.
const ALL: usize = 1024;
/// A token.
const EACH: usize = 64;

/// All places.
#[derive(Debug, Default)]
pub struct Slots {
    by: Mutex<BTreeMap<String, usize>>,
}

/// One place.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    token: String,
}

impl Slots {
    /// A place for this token.
    pub fn take(self: &Arc<Self>, token: &str) -> Result<Slot, Refused> {
        let mut by = self.by.lock();
        let (all, own) = (by.values().sum::<usize>(), by.get(token).copied().unwrap_or(0));
        if all >= ALL || own >= EACH {
            let why =
                format!("{own} watches and long polls of this token and {all} in all are open: close some");
            return Err(Refused::too_many(&why, Duration::from_secs(1)));
        }
        by.insert(token.to_owned(), own + 1);
        Ok(Slot { slots: self.clone(), token: token.to_owned() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut by = self.slots.by.lock();
        match by.get_mut(&self.token) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                by.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_so_many_places_and_gets_them_back() {
        let slots = Arc::new(Slots::default());
        let held: Vec<Slot> = (0..EACH).map(|_| slots.take("a").unwrap()).collect();
        assert!(slots.take("a").is_err());
        let other = slots.take("b").unwrap();
        drop(held);
        assert!(slots.take("a").is_ok());
        drop(other);
        assert!(slots.by.lock().is_empty());
    }
}
