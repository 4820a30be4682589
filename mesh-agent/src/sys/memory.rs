//! Memory that the allocator holds and nobody uses.
//!
//! Not here: another allocator; the agent allocates little where it is busy.

#![allow(unsafe_code)]

/// Keeps the allocator from giving each thread an arena of its own, in which what is freed stays. To be
/// called before there are threads.
pub fn limit_arenas() {
    // SAFETY: `mallopt` sets a number of the allocator's; two arenas are as correct as eight.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free pages back to the system: after a full sync, whose decoding needs several times what stays.
/// Locks the allocator for about a millisecond: not after every change.
pub fn trim() {
    // SAFETY: `malloc_trim` may be called at any time from any thread; it touches free memory only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
