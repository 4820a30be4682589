//! The `bpf(2)` calls that aya lacks: links made with an order, links updated in place, pinned links, and
//! storage looked up by socket descriptor without a lock, many entries of a map at once.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

/// `BPF_F_BEFORE`: ahead of the programs that are attached already (since Linux 6.17 for cgroups).
pub const BEFORE: u32 = 1 << 3;

/// Where a program is attached (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// TCP events.
    SockOps = 3,
    /// A socket's last descriptor is closed.
    SockRelease = 34,
    /// `connect()`, IPv4.
    Connect4 = 10,
    /// `connect()`, IPv6.
    Connect6 = 11,
    /// A UDP datagram with a destination of its own, IPv4.
    SendMsg4 = 14,
    /// The same, IPv6.
    SendMsg6 = 15,
    /// A UDP datagram is received and its sender told, IPv4.
    RecvMsg4 = 19,
    /// The same, IPv6.
    RecvMsg6 = 20,
    /// `getpeername()` and `accept()`, IPv4.
    GetPeerName4 = 29,
    /// `getpeername()` and `accept()`, IPv6.
    GetPeerName6 = 30,
    /// Inbound connections of a network namespace.
    SkLookup = 36,
}

pub(super) fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is a `repr(C)` prefix of `union bpf_attr` whose size is passed with it; the pointers in
    // it are to live values of the sizes that the kernel knows from the map or the command.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(super) fn descriptor(result: i64) -> OwnedFd {
    // SAFETY: the commands that lead here return a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Attaches a program; the link holds it until the descriptor and all pins are gone.
///
/// # Errors
/// `EPERM`: a program that allows no other is attached there; `EINVAL`: the kernel does not know `flags`.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    at: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: program.as_raw_fd() as u32,
        target: target.as_raw_fd() as u32,
        attach_type: at as u32,
        flags,
        relative: 0,
        pad: 0,
        revision: 0,
    };
    bpf(LINK_CREATE, &mut attr).map(descriptor)
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts another program in place of the one that a link holds; no connection sees neither.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// `BPF_SK_MSG_VERDICT`.
const SK_MSG_VERDICT: u32 = 7;

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
}

/// Gives a map of sockets the program that runs at each `send()` of those that come into it from now on, in place
/// of the one that it has. It stays for as long as the map is there.
pub fn attach_to_sockets(map: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    sockets(PROG_ATTACH, map, program)
}

/// Takes it away again. Sockets that are in the map keep it.
pub fn detach_from_sockets(map: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    sockets(PROG_DETACH, map, program)
}

fn sockets(command: libc::c_int, map: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attach {
        target: map.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: SK_MSG_VERDICT,
        flags: 0,
        replace: 0,
    };
    bpf(command, &mut attr).map(drop)
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a map, program or link at a path of a bpffs.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Opens what is pinned at a path.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    bpf(OBJ_GET, &mut attr).map(descriptor)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    out: u64,
}

/// Fills `out` with what the kernel says of a program, map or link: a prefix of its `struct bpf_*_info`.
pub(super) fn info<T: Pod>(object: BorrowedFd<'_>, out: &mut T) -> io::Result<()> {
    let mut attr = Info {
        fd: object.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        out: std::ptr::from_mut(out) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Words of the head of `struct bpf_link_info`: kind, id, program, hole, target (8 bytes).
type LinkWords = [u32; 8];

fn link_words(link: BorrowedFd<'_>) -> io::Result<LinkWords> {
    let mut words = LinkWords::default();
    info(link, &mut words)?;
    Ok(words)
}

fn link_target(link: BorrowedFd<'_>) -> io::Result<u64> {
    let words = link_words(link)?;
    Ok(u64::from(words[4]) | u64::from(words[5]) << 32)
}

/// Ids of a link and of its program.
pub fn link_ids(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let words = link_words(link)?;
    Ok((words[1], words[2]))
}

/// The cgroup id that a cgroup link is attached to; 0: to none any more.
pub fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    link_target(link)
}

/// The inode of the network namespace that a link is attached to; 0: to none any more.
pub fn link_netns(link: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct { __u32 netns_ino; __u32 attach_type; }` in the place of the cgroup id.
    link_target(link).map(|target| target as u32)
}

/// One entry of a map, for the kernel.
#[repr(C)]
pub(super) struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    /// `key`, `value`: their addresses.
    pub(super) fn new(map: BorrowedFd<'_>, key: u64, value: u64) -> Self {
        Self { map: map.as_raw_fd() as u32, pad: 0, key, value, flags: 0 }
    }
}

/// Many entries of a map, for the kernel.
#[repr(C)]
pub(super) struct Batch {
    /// Where to go on, and where it ended: of look-ups.
    pub(super) from: u64,
    pub(super) to: u64,
    keys: u64,
    values: u64,
    /// Entries; afterwards, how many it were.
    pub(super) count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl Batch {
    /// `keys`, `values`: their addresses.
    pub(super) fn new(map: BorrowedFd<'_>, keys: u64, values: u64, count: usize) -> Self {
        let (map, count) = (map.as_raw_fd() as u32, count as u32);
        Self { from: 0, to: 0, keys, values, count, map, element_flags: 0, flags: 0 }
    }
}

/// The record that a socket storage map holds for `socket`. `V` has the map's value size: the caller's map
/// and type come from one `mesh_common::maps` entry.
pub fn storage_get<V: Pod>(map: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<Option<V>> {
    let key = socket.as_raw_fd();
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    let mut attr = Element::new(map, std::ptr::from_ref(&key) as u64, value.as_mut_ptr() as u64);
    match bpf(MAP_LOOKUP_ELEM, &mut attr) {
        // SAFETY: the kernel has filled it, and any bits are a `V`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Puts a record on `socket`, over an older one.
pub fn storage_put<V: Pod>(map: BorrowedFd<'_>, socket: BorrowedFd<'_>, value: &V) -> io::Result<()> {
    let key = socket.as_raw_fd();
    let mut attr = Element::new(map, std::ptr::from_ref(&key) as u64, std::ptr::from_ref(value) as u64);
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Inserts or replaces the entries of a hash, in their order, with one call. `K` and `V` have the map's sizes, as for
/// [`storage_get`].
///
/// # Errors
/// Some of the first entries may have been written.
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, entries: &[(K, V)]) -> io::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let mut attr = Batch::new(map, keys.as_ptr() as u64, values.as_ptr() as u64, entries.len());
    bpf(MAP_UPDATE_BATCH, &mut attr).map(drop)
}
