//! Where a flow lives: the arithmetic of the arrays in which each socket cookie has a home, and of the word
//! that says who is there.

use crate::maps::FLOWS;

/// The bits of a home's word that hold the cookie of the flow that lives there; 0: nobody. The kernel counts
/// cookies up from 1: 2⁴⁸ sockets are never reached.
pub const COOKIE: u64 = (1 << 48) - 1;
/// One flow of this home that lives in `FLOWS_ABROAD`.
pub const ABROAD: u64 = 1 << 48;
/// As many as the word can count. `FLOWS_ABROAD` has no more room than that.
pub const MOST_ABROAD: u64 = 0xffff;

const _: () = assert!(FLOWS.capacity.is_power_of_two());
const _: () = assert!(crate::maps::FLOWS_ABROAD.capacity as u64 <= MOST_ABROAD + 1);

/// The slot of a cookie.
#[inline(always)]
pub const fn home(cookie: u64) -> u32 {
    cookie as u32 & (FLOWS.capacity - 1)
}

/// Does the flow of `cookie` live at the home with this word?
#[inline(always)]
pub const fn lives(word: u64, cookie: u64) -> bool {
    word & COOKIE == cookie
}

/// How many flows of this home live in `FLOWS_ABROAD`.
#[inline(always)]
pub const fn abroad(word: u64) -> u64 {
    word >> 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_in_and_out_leaves_those_abroad_counted() {
        let mut word = 3 * ABROAD;
        word |= 0x4d;
        assert!(lives(word, 0x4d) && abroad(word) == 3);
        word = word.wrapping_add(ABROAD);
        word = word.wrapping_add(0x4du64.wrapping_neg());
        assert!(lives(word, 0) && abroad(word) == 4, "{word:#x}");
    }

    #[test]
    fn neighbours_in_time_are_neighbours_in_memory() {
        assert_eq!(home(5) + 1, home(6));
        assert_eq!(home(u64::from(FLOWS.capacity) + 5), home(5));
    }
}
