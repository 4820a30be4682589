//! When the agent takes no new connections, so that those that it has go on.
//!
//! Invariant: what has begun to be refused is taken again only well below the mark, so that it does not flicker.

/// Percent of what there is, from which on new work is refused.
pub const HIGH: u64 = 90;
/// And below which it is taken again.
pub const LOW: u64 = 80;

/// How much of something is used, and how much there is; 0: nobody knows, or it has no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Used.
    pub used: u64,
    /// There is.
    pub room: u64,
}

/// Is new work refused from now on, where it was (`before`) or was not?
pub fn sheds(before: bool, of: &[Used]) -> bool {
    let mark = if before { LOW } else { HIGH };
    of.iter().any(|one| one.room > 0 && one.used.saturating_mul(100) >= one.room.saturating_mul(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_late_and_ends_early() {
        let of = |used| [Used { used: 5, room: 0 }, Used { used, room: 1000 }];
        assert!(!sheds(false, &of(899)) && sheds(false, &of(900)));
        assert!(sheds(true, &of(800)) && !sheds(true, &of(799)));
        assert!(!sheds(true, &[]));
    }
}
