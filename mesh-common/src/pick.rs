//! Which slot of a service's table a connection gets, and when an endpoint is left out of it.
//!
//! The programs give these functions what they ask for by closures over the maps; tests give them arrays.
//!
//! Invariants: [`choose`] ends after [`DRAWS`] draws and [`SCAN`] steps; in a table of at most [`SCAN`] slots
//! it returns a slot that does not fit only where none does.

use crate::record::Rules;

/// Draws before a table is looked through.
pub const DRAWS: u32 = 8;
/// Slots that are looked at then: all of a table that is no longer. A longer one is looked through in wide
/// strides, so that neighbours that fail together are not met in a row.
pub const SCAN: u32 = 256;
/// Of endpoints that are ejected a second and more often, the longest time: five minutes, or the base.
pub const EJECTION_MAX_NS: u64 = 300_000_000_000;

/// May a slot's endpoint be chosen?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Yes.
    Fit,
    /// It is ejected.
    Ejected,
    /// It has all the connections that it may have.
    Full,
}

/// What came of choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This slot.
    Slot(u32),
    /// No endpoint that was looked at has room.
    Full,
    /// The table is another by now.
    Changed,
}

/// The search for a slot of a table, step by step: the programs' loops must be the kernel's own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Search {
    first: u32,
    last: u32,
    full: u32,
    /// [`SEARCHING`], [`FOUND`] (it is `last`) or [`CHANGED`].
    state: u32,
}

const SEARCHING: u32 = 0;
const FOUND: u32 = 1;
const CHANGED: u32 = 2;

impl Search {
    /// Before the first step. `zero` is 0, and need not be known to be.
    #[inline(always)]
    pub const fn new(zero: u32) -> Self {
        Self { first: zero, last: zero, full: zero, state: zero }
    }

    /// Step number `step`, from 0 on and below [`steps`]. `draw` gives the slot of an attempt, `standing` says
    /// whether it will do; `None` from either: the table has changed. `true`: this was the last step.
    #[inline(always)]
    pub fn step(
        &mut self,
        step: u32,
        len: u32,
        draw: impl FnOnce(u32) -> Option<u32>,
        standing: impl FnOnce(u32) -> Option<Standing>,
    ) -> bool {
        let slot = if step < DRAWS { draw(step) } else { Some(after(self.last, stride(len), len)) };
        let Some(slot) = slot else {
            self.state = CHANGED;
            return true;
        };
        self.last = slot;
        if step == 0 {
            self.first = slot;
        }
        match standing(slot) {
            Some(Standing::Fit) => self.state = FOUND,
            Some(Standing::Full) => self.full = 1,
            Some(Standing::Ejected) => {}
            None => self.state = CHANGED,
        }
        self.state != SEARCHING
    }

    /// What came of the steps so far.
    #[inline(always)]
    pub const fn choice(&self) -> Choice {
        match self.state {
            FOUND => Choice::Slot(self.last),
            CHANGED => Choice::Changed,
            _ if self.full != 0 => Choice::Full,
            _ => Choice::Slot(self.first),
        }
    }
}

/// Most steps of a search in a table of `len`.
#[inline(always)]
pub const fn steps(len: u32) -> u32 {
    DRAWS + if len < SCAN { len } else { SCAN }
}

/// A slot of a table of `len`, which is not 0: all the steps of a [`Search`].
pub fn choose(
    len: u32,
    mut draw: impl FnMut(u32) -> Option<u32>,
    mut standing: impl FnMut(u32) -> Option<Standing>,
) -> Choice {
    let mut search = Search::new(SEARCHING);
    let _ = (0..steps(len)).any(|step| search.step(step, len, &mut draw, &mut standing));
    search.choice()
}

/// 1 in a table that is looked through to its end; about 0.38 of a longer one.
#[inline(always)]
const fn stride(len: u32) -> u32 {
    if len <= SCAN { 1 } else { ((len as u64 * 1_640_531_527) >> 32) as u32 }
}

#[inline(always)]
const fn after(slot: u32, stride: u32, len: u32) -> u32 {
    let next = slot + stride;
    if next >= len { next - len } else { next }
}

/// Are so many ejected that all are used again? When less than half of the endpoints is left.
#[inline(always)]
pub const fn panic(ejected: u64, endpoints: u32) -> bool {
    ejected * 2 > endpoints as u64
}

/// Has this one fewer connections for its weight?
#[inline(always)]
pub const fn less_loaded(live: u64, weight: u32, other_live: u64, other_weight: u32) -> bool {
    // One more each: of two that are idle the heavier one is chosen.
    (live + 1) * (other_weight as u64) < (other_live + 1) * (weight as u64)
}

/// Until when an endpoint is ejected that has failed `in_a_row` times and been ejected `before` times since it
/// last answered; `None`: it is not. `until`: of the ejection before, 0: none; `ejected`: endpoints of the
/// service that are ejected now.
#[inline(always)]
pub const fn ejection(
    rules: &Rules,
    in_a_row: u64,
    before: u64,
    until: u64,
    ejected: u64,
    now: u64,
) -> Option<u64> {
    if rules.failures == 0 || in_a_row < rules.failures as u64 || until > now {
        return None;
    }
    // One whose time is over and that nobody has chosen since is among the ejected.
    let others = if until == 0 { ejected } else { ejected.saturating_sub(1) };
    let within = (others + 1) * 100 <= rules.max_ejected_percent as u64 * rules.endpoints as u64;
    let first_of_several = others == 0 && rules.endpoints >= 2;
    if !within && !first_of_several || rules.endpoints < 2 {
        return None;
    }
    let times = if before < 1000 { before + 1 } else { 1000 };
    let most = if rules.ejection_ns > EJECTION_MAX_NS { rules.ejection_ns } else { EJECTION_MAX_NS };
    let long = rules.ejection_ns * times;
    Some(now + if long > most { most } else { long })
}

/// A number for a client's address, the same on every node.
#[inline(always)]
pub const fn client(addr: &crate::addr::Addr) -> u32 {
    let high = (addr[0] as u64) << 32 | addr[1] as u64;
    let low = (addr[2] as u64) << 32 | addr[3] as u64;
    (mix(high ^ mix(low)) >> 32) as u32
}

/// Another number of the same client's, for its next attempt.
#[inline(always)]
pub const fn again(client: u32, attempt: u32) -> u32 {
    if attempt == 0 { client } else { (mix((client as u64) << 32 | attempt as u64) >> 32) as u32 }
}

/// Spreads one number over all bits (splitmix64).
#[inline(always)]
pub const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Entries of the Maglev table over so many slots: a prime, a hundred times their number while that is below
/// 2¹⁶.
#[inline(always)]
pub const fn maglev_size(len: u32) -> u32 {
    if len == 0 {
        0
    } else if len <= 10 {
        1021
    } else if len <= 40 {
        4093
    } else if len <= 160 {
        16_381
    } else {
        65_521
    }
}

/// Slots of `ENDPOINTS` that hold it.
#[inline(always)]
pub const fn maglev_rows(len: u32) -> u32 {
    maglev_size(len).div_ceil(crate::record::MAGLEV_ROW as u32)
}

/// The entry of a Maglev table that a number falls on.
#[inline(always)]
pub const fn maglev_entry(number: u32, len: u32) -> u32 {
    ((number as u64 * maglev_size(len) as u64) >> 32) as u32
}

/// More slots than a Maglev table can name.
pub const MAGLEV_SLOTS: u32 = u16::MAX as u32;

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn standing() -> impl Strategy<Value = Standing> {
        prop_oneof![Just(Standing::Fit), Just(Standing::Ejected), Just(Standing::Full)]
    }

    proptest! {
        #[test]
        fn where_a_fit_endpoint_exists_no_other_is_chosen(
            table in prop::collection::vec(standing(), 1..=SCAN as usize),
            seed in any::<u64>(),
        ) {
            let len = table.len() as u32;
            let draw = |attempt: u32| Some((mix(seed ^ u64::from(attempt)) % u64::from(len)) as u32);
            let chosen = choose(len, draw, |slot| Some(table[slot as usize]));
            if table.contains(&Standing::Fit) {
                let Choice::Slot(slot) = chosen else { panic!("{chosen:?}") };
                prop_assert_eq!(table[slot as usize], Standing::Fit);
            } else if table.contains(&Standing::Full) {
                prop_assert_eq!(chosen, Choice::Full);
            } else {
                prop_assert_eq!(chosen, Choice::Slot((mix(seed) % u64::from(len)) as u32));
            }
        }

        #[test]
        fn neighbours_that_fail_together_are_passed_over_in_a_long_table(
            len in SCAN + 1..40_000,
            begin in any::<u32>(),
            draws in any::<u32>(),
        ) {
            // Not quite half of the table, in a row: as many as may be ejected without panic.
            let begin = begin % len;
            let ill = |slot: u32| (slot + len - begin) % len < len / 2;
            let standing = |slot| Some(if ill(slot) { Standing::Ejected } else { Standing::Fit });
            // Draws that meet no other.
            let chosen = choose(len, |_| Some((begin + draws % (len / 2)) % len), standing);
            let Choice::Slot(slot) = chosen else { panic!("{chosen:?}") };
            prop_assert!(!ill(slot));
        }

        #[test]
        fn no_more_are_ejected_than_may_be_but_one_of_two(
            endpoints in 0u32..200, percent in 1u32..=100, ejected in 0u64..200, before in any::<u64>(),
        ) {
            let rules = Rules {
                endpoints, max_ejected_percent: percent, failures: 3, ejection_ns: 10, ..Rules::default()
            };
            let until = ejection(&rules, 3, before, 0, ejected, 1000);
            let may = endpoints >= 2
                && (ejected == 0 || (ejected + 1) * 100 <= u64::from(percent) * u64::from(endpoints));
            prop_assert_eq!(until.is_some(), may);
        }
    }

    #[test]
    fn a_changed_table_is_said_to_be() {
        assert_eq!(choose(3, |_| None, |_| Some(Standing::Fit)), Choice::Changed);
        assert_eq!(choose(3, |_| Some(1), |_| None), Choice::Changed);
    }

    #[test]
    fn ejections_grow_longer_and_end_at_five_minutes() {
        let second = 1_000_000_000;
        let rules = Rules {
            endpoints: 4,
            failures: 5,
            max_ejected_percent: 50,
            ejection_ns: 30 * second,
            ..Rules::default()
        };
        let eject =
            |in_a_row, before, until, ejected| ejection(&rules, in_a_row, before, until, ejected, second);
        assert_eq!(eject(4, 0, 0, 0), None, "not yet");
        assert_eq!(eject(5, 0, 0, 0), Some(31 * second));
        assert_eq!(eject(5, 2, 0, 0), Some(91 * second));
        assert_eq!(eject(5, 10_000, 0, 0), Some(301 * second));
        assert_eq!(eject(5, 0, 2 * second, 0), None, "it is");
        assert_eq!(eject(5, 0, 0, 2), None, "half of four");
        assert_eq!(eject(5, 1, second / 2, 2), Some(61 * second), "it is one of the two");
        assert_eq!(ejection(&Rules::default(), 5, 0, 0, 0, second), None, "nobody asks for it");
    }

    #[test]
    fn below_half_all_are_used() {
        assert!(!panic(0, 0) && !panic(1, 2) && !panic(2, 4));
        assert!(panic(2, 3) && panic(1, 1) && panic(3, 5));
    }

    #[test]
    fn load_is_weighed() {
        assert!(less_loaded(1, 1, 2, 1) && !less_loaded(2, 1, 1, 1) && !less_loaded(1, 1, 1, 1));
        assert!(less_loaded(5, 3, 2, 1), "a third of the way to a seventh");
        assert!(less_loaded(0, 3, 0, 1) && !less_loaded(0, 1, 0, 3));
    }

    #[test]
    fn clients_are_spread() {
        let mut seen: Vec<u32> =
            (0..1000u32).map(|i| maglev_entry(client(&[0, 0, 0xffff_0000, i]), 3)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 500, "{}", seen.len());
        assert_ne!(again(7, 1), again(7, 2));
        assert_eq!(again(7, 0), 7);
    }
}
