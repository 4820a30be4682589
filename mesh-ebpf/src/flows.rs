//! The flows under way, by socket cookie: noted in `connect()`, read at each event, forgotten at the end.
//!
//! A slot of an array is the cookie's home. Cookies are given out nearly in sequence, so that neighbours in
//! time are neighbours in memory, and a note costs one cache line; a socket's first storage costs 0.6 µs,
//! a hash entry 0.27 µs (measured). Who finds the home taken goes to a hash.
//!
//! The first word of a home, [`Flow::home`], holds the cookie that lives there (0: none) in its low 48 bits
//! and how many of its cookies live in the hash in the upper 16. It changes by atomic operations alone: a
//! miss at a home with no one abroad is final.
//!
//! One socket's events never run at once (it is locked), and only they touch its flow.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use mesh_common::flows::{ABROAD, COOKIE, MOST_ABROAD, abroad, home, lives};
use mesh_common::record::Flow;

use crate::maps::{FLOWS, FLOWS_ABROAD};
use crate::socket::{add, copy_words};

const ANY: u64 = 0;

/// The cookie of the context's socket.
#[inline(always)]
pub fn cookie(ctx: *mut c_void) -> u64 {
    // SAFETY: a valid context of a hook that has a socket.
    unsafe { bpf_get_socket_cookie(ctx) & COOKIE }
}

/// The flow of this socket.
#[inline(always)]
pub fn find(cookie: u64) -> Option<&'static mut Flow> {
    let slot = FLOWS.get_ptr_mut(home(cookie))?;
    let word = word_of(slot);
    if lives(word, cookie) {
        // SAFETY: a live array.
        return unsafe { slot.as_mut() };
    }
    if abroad(word) == 0 {
        return None;
    }
    // SAFETY: a value of the map's, which stays for the run of the program.
    unsafe { FLOWS_ABROAD.get_ptr_mut(&cookie)?.as_mut() }
}

/// A socket's home, read before it is needed: it is hardly ever in the cache, and what comes next need not
/// wait for it.
#[derive(Clone, Copy)]
pub struct Place {
    cookie: u64,
    word: u64,
}

/// Reads a socket's home.
#[inline(always)]
pub fn approach(cookie: u64) -> Place {
    Place { cookie, word: FLOWS.get_ptr(home(cookie)).map_or(0, |slot| word_of(slot)) }
}

/// Notes a flow, over an older one of the same socket. `false`: no room.
#[inline(always)]
pub fn note(place: Place, flow: &Flow) -> bool {
    let Place { cookie, word } = place;
    let Some(slot) = FLOWS.get_ptr_mut(home(cookie)) else { return false };
    if lives(word, cookie) || (word & COOKIE == 0 && claim(slot, word, cookie)) {
        copy_body(slot, flow);
        return true;
    }
    if abroad(word_of(slot)) == MOST_ABROAD {
        return false;
    }
    let known = FLOWS_ABROAD.get_ptr(&cookie).is_some();
    let noted = FLOWS_ABROAD.insert(&cookie, flow, ANY).is_ok();
    if noted && !known {
        // SAFETY: the first word of a live slot.
        add(unsafe { &raw mut (*slot).home }, ABROAD);
    }
    noted
}

/// Forgets the flow of this socket.
#[inline(always)]
pub fn forget(cookie: u64) {
    let Some(slot) = FLOWS.get_ptr_mut(home(cookie)) else { return };
    // SAFETY: the first word of a live slot.
    let at = unsafe { &raw mut (*slot).home };
    if lives(word_of(slot), cookie) {
        add(at, cookie.wrapping_neg());
    } else if FLOWS_ABROAD.remove(&cookie).is_ok() {
        add(at, ABROAD.wrapping_neg());
    }
}

#[inline(always)]
fn word_of(slot: *const Flow) -> u64 {
    // SAFETY: an aligned word of a live array.
    unsafe { (&raw const (*slot).home).read_volatile() }
}

/// Moves in, if nobody has since `word` was read.
#[inline(always)]
fn claim(slot: *mut Flow, word: u64, cookie: u64) -> bool {
    // SAFETY: an aligned word of a live array.
    let (_, moved) = unsafe {
        core::intrinsics::atomic_cxchg::<
            u64,
            { core::intrinsics::AtomicOrdering::SeqCst },
            { core::intrinsics::AtomicOrdering::SeqCst },
        >(&raw mut (*slot).home, word, word | cookie)
    };
    moved
}

/// All but the first word.
#[inline(always)]
fn copy_body(to: *mut Flow, from: &Flow) {
    const WORDS: usize = size_of::<Flow>() / 8 - 1;
    // SAFETY: both are a `Flow`, of whose words all but the first are copied.
    unsafe { copy_words(to.cast::<u64>().add(1).cast::<[u64; WORDS]>(), core::ptr::from_ref(from).cast::<u64>().add(1).cast()) };
}
