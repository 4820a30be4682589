//! What the kernel says of programs and maps: names, runs, order, fill. Changes nothing.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::bpf::{AttachType, Batch, Element, bpf, descriptor, info};

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const PROG_QUERY: libc::c_int = 16;
const ENABLE_STATS: libc::c_int = 32;
/// `BPF_F_QUERY_EFFECTIVE`: those of the cgroups above as well, in the order in which they run.
const EFFECTIVE: u32 = 1;
/// Programs at one place, at most: the kernel allows 64.
const PROGRAMS_MAX: usize = 64;
/// Longest key of a map that is looked through, bytes.
const KEY_MAX: usize = 64;

/// Opens a program by its id.
pub fn program(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    bpf(PROG_GET_FD_BY_ID, &mut attr).map(descriptor)
}

/// A program, and what it has cost while the kernel counted that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Its id.
    pub id: u32,
    /// Its name, cut at 15 bytes.
    pub name: String,
    /// Runs that were counted.
    pub runs: u64,
    /// Nanoseconds that they took.
    pub run_ns: u64,
}

/// What the kernel says of a program.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    // `struct bpf_prog_info` up to `run_cnt`, in words: id in 0, name in 8 and 9, run time and runs in 24, 25.
    let mut words = [0u64; 26];
    info(program, &mut words)?;
    let name: Vec<u8> =
        words[8..10].iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b != 0).collect();
    Ok(ProgramInfo {
        id: (words[0] >> 32) as u32,
        name: String::from_utf8_lossy(&name).into_owned(),
        runs: words[25],
        run_ns: words[24],
    })
}

/// Makes the kernel count the runs of all programs until the descriptor is closed.
pub fn count_runs() -> io::Result<OwnedFd> {
    // `BPF_STATS_RUN_TIME`.
    bpf(ENABLE_STATS, &mut [0u32]).map(descriptor)
}

#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    found_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

fn query(cgroup: BorrowedFd<'_>, at: AttachType, flags: u32) -> io::Result<(Vec<u32>, u64)> {
    let mut ids = vec![0u32; PROGRAMS_MAX];
    let mut attr = Query {
        target: cgroup.as_raw_fd() as u32,
        attach_type: at as u32,
        flags,
        found_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        pad: 0,
        program_flags: 0,
        link_ids: 0,
        link_flags: 0,
        revision: 0,
    };
    bpf(PROG_QUERY, &mut attr)?;
    ids.truncate(attr.count as usize);
    Ok((ids, attr.revision))
}

/// Ids of the programs that run for a cgroup at this place, in their order.
pub fn effective(cgroup: BorrowedFd<'_>, at: AttachType) -> io::Result<Vec<u32>> {
    Ok(query(cgroup, at, EFFECTIVE)?.0)
}

/// Does the kernel let a program be attached before others? Such kernels number the changes of a place.
pub fn knows_order(cgroup: BorrowedFd<'_>, at: AttachType) -> io::Result<bool> {
    Ok(query(cgroup, at, 0)?.1 != 0)
}

/// What a map is (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// Its type.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries; bytes of a ring.
    pub capacity: u32,
}

/// What the kernel says of a map.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut words = [0u32; 6];
    info(map, &mut words)?;
    Ok(MapInfo { kind: words[0], key: words[2], value: words[3], capacity: words[4] })
}

/// Entries that one call looks at.
const BATCH: usize = 512;

/// How many entries a map of keys holds, looked at by the bucket: what comes and goes meanwhile counts or not,
/// and nothing counts twice. `values`: values a key has: 1, or as many as there are CPUs.
pub fn entries(map: BorrowedFd<'_>, of: MapInfo, values: usize) -> io::Result<u64> {
    let (key, value) = (of.key as usize, of.value as usize);
    if key > KEY_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the map's keys are too long"));
    }
    let value = if values == 1 { value } else { value.next_multiple_of(8) * values };
    let (mut keys, mut all) = (vec![0u8; BATCH * key], vec![0u8; BATCH * value]);
    let (mut from, mut to) = ([0u8; KEY_MAX], [0u8; KEY_MAX]);
    let mut count = 0;
    loop {
        let mut attr = Batch::new(map, keys.as_mut_ptr() as u64, all.as_mut_ptr() as u64, BATCH);
        attr.from = if count == 0 { 0 } else { from.as_ptr() as u64 };
        attr.to = to.as_mut_ptr() as u64;
        // The buffers hold a batch of this map's keys and values; a place is a number or a key.
        let more = match bpf(MAP_LOOKUP_BATCH, &mut attr) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        count += u64::from(attr.count);
        // A map that is filled as fast as it is looked at ends here.
        if !more || attr.count == 0 || count >= u64::from(of.capacity) {
            return Ok(count.min(u64::from(of.capacity)));
        }
        from = to;
    }
}

/// How many words of an array are not 0.
pub fn taken(map: BorrowedFd<'_>, of: MapInfo) -> io::Result<u64> {
    if of.value != 8 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the map does not hold words"));
    }
    let mut count = 0;
    for slot in 0..of.capacity {
        let mut value = 0u64;
        let (key, out) = (std::ptr::from_ref(&slot) as u64, std::ptr::from_mut(&mut value) as u64);
        match bpf(MAP_LOOKUP_ELEM, &mut Element::new(map, key, out)) {
            Ok(_) => count += u64::from(value != 0),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(count)
}

/// Bytes that wait in a ring.
pub fn waiting(ring: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
    let bytes = 2 * page;
    // SAFETY: a fresh mapping chosen by the kernel, of the two pages that each ring begins with.
    let base = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, ring, 0)? };
    // SAFETY: the first word of each page: the reader's place and the writer's, both only rising. The reader's
    // first: so the difference is never below zero.
    let (read, written) = unsafe {
        let read = base.cast::<u64>().read_volatile();
        (read, base.cast::<u64>().add(page / size_of::<u64>()).read_volatile())
    };
    // SAFETY: the mapping made above, whole.
    unsafe { munmap(base, bytes)? };
    Ok(written.saturating_sub(read))
}
