//! What gRPC calls, where it is not all said by name: `/package.Service/Method` by expression, or a method of any service.
//!
//! The Gateway API's order: more characters of the service, then more of the method. Of an expression its own count.
//! Not here: calls that are said by name (exact paths and prefixes of the table).

use std::cmp::Reverse;

use super::Pattern;

/// Services and methods that a call may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPattern {
    pattern: Pattern,
    service: usize,
    method: usize,
}

impl CallPattern {
    /// Of expressions, each of a whole name; empty: any. `None`: they cannot be compiled within mesh-api's bound.
    pub fn new(service: &str, method: &str) -> Option<Self> {
        let part = |text: &str| if text.is_empty() { "[^/]+".to_owned() } else { format!("(?:{text})") };
        let pattern = Pattern::new(&format!("/{}/{}", part(service), part(method)))?;
        Some(Self { pattern, service: service.len(), method: method.len() })
    }

    /// Is this path one of them?
    pub fn holds(&self, path: &[u8]) -> bool {
        self.pattern.holds(path)
    }

    /// Smaller comes first.
    pub(super) fn rank(&self) -> Reverse<(usize, usize)> {
        Reverse((self.service, self.method))
    }
}
