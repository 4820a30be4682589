//! Memory that the allocator holds and nobody uses.

#![allow(unsafe_code)]

/// Gives free pages back to the system: after a full sync, whose decoding needs several times what stays.
/// Locks the allocator for about a millisecond: not after every change.
pub fn trim() {
    // SAFETY: `malloc_trim` may be called at any time from any thread; it touches free memory only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
