//! Strings that many resources have in common (namespaces, service accounts, nodes), each held once.

use std::collections::HashSet;
use std::sync::Arc;

/// The strings.
#[derive(Debug, Default)]
pub(crate) struct Interned(HashSet<Arc<str>>);

impl Interned {
    /// The one copy of `text`.
    pub fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.0.get(text) {
            return Arc::clone(held);
        }
        let new: Arc<str> = text.into();
        self.0.insert(Arc::clone(&new));
        new
    }

    /// Forgets those that nobody else holds any more. For now and then: it looks at all of them.
    pub fn sweep(&mut self) {
        self.0.retain(|held| Arc::strong_count(held) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_held_once_and_as_long_as_somebody_needs_it() {
        let mut all = Interned::default();
        let (a, again, _b) = (all.get("a"), all.get("a"), all.get("b"));
        assert!(Arc::ptr_eq(&a, &again));
        drop((a, again));
        all.sweep();
        assert_eq!(all.0.len(), 1);
    }
}
