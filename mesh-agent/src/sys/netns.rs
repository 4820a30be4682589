//! Network namespaces: run something in one, and what a namespace is called by the kernel.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The kernel's name of the namespace that a socket lives in: never reused, unlike the inode.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

thread_local! {
    /// The namespace that this thread belongs to.
    static HOME: io::Result<std::fs::File> = std::fs::File::open("/proc/thread-self/ns/net");
}

/// Runs `f` with this thread in the namespace `ns` and comes back. A thread that cannot come back would do
/// everything that follows in a stranger's namespace: then the process ends.
pub fn in_netns<T>(ns: BorrowedFd<'_>, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    HOME.with(|home| {
        let home =
            home.as_ref().map_err(|e| io::Error::new(e.kind(), format!("/proc/thread-self/ns/net: {e}")))?;
        move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))?;
        let _back = Back(home);
        f()
    })
}

/// Comes back also when `f` panics.
struct Back<'a>(&'a std::fs::File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        use std::os::fd::AsFd;
        if let Err(error) = move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)) {
            tracing::error!(%error, "cannot return to the agent's own network namespace; ending");
            std::process::abort();
        }
    }
}
