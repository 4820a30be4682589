//! Memory that the allocator holds and nobody uses.
//!
//! Not here: another allocator; the agent allocates little where it is busy.

#![allow(unsafe_code)]

/// What is as large comes straight from the system, and goes back there at once.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Keeps the allocator from giving each thread an arena of its own, in which what is freed stays, and from raising
/// by itself what it takes for large: one message of a full sync, and ever after that size would stay. To be called
/// before there are threads.
pub fn limit_allocator() {
    // SAFETY: `mallopt` sets numbers of the allocator's; two arenas are as correct as eight.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
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
