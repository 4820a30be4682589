//! Descriptors that a tokio runtime watches.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime that this is called in.
pub fn watch<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a type that lends its descriptor (`AsFd`) owns one that stays open and the same as long as it
    // lives, and `AsyncFd` owns `inner`.
    Ok(unsafe { AsyncFd::register_with_interest(inner, interest)? })
}
