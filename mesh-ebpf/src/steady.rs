//! Reads entries of hashes as one entry of one key.
//!
//! The kernel gives an element of a hash to the next key at once, where none rests in advance: a program that
//! was held between finding an entry and reading it may read another key's, or halves of two. So it is read, looked
//! up again, and taken when both say the same: at the second look the element was the key's again.
//!
//! Global functions, which the verifier looks at once for itself. Not here: arrays, whose writers let what was
//! left rest (`mesh_common::homes`, slots of tables by their generation).

use mesh_common::record::{FlowKey, FlowSource, Service, ServiceKey, Workload, WorkloadKey};
use mesh_common::sender::Sender;

use crate::maps::{FLOW_SRC, SERVICES, UDP_SENDERS, WORKLOADS};

/// An entry that changes at each of so many looks is taken as the last one found it.
const LOOKS: u32 = 3;
const FOUND: u64 = 1;
const NONE: u64 = 0;

/// A service, as the hash has it.
#[unsafe(no_mangle)]
pub extern "C" fn mesh_service(key: *const ServiceKey, to: *mut Service) -> u64 {
    read(|key| SERVICES.get_ptr(key), key, to)
}

/// A workload's port.
#[unsafe(no_mangle)]
pub extern "C" fn mesh_workload(key: *const WorkloadKey, to: *mut Workload) -> u64 {
    read(|key| WORKLOADS.get_ptr(key), key, to)
}

/// Who opened a connection.
#[unsafe(no_mangle)]
pub extern "C" fn mesh_flow_source(key: *const FlowKey, to: *mut FlowSource) -> u64 {
    read(|key| FLOW_SRC.get_ptr(key), key, to)
}

/// Who sends datagrams from there.
#[unsafe(no_mangle)]
pub extern "C" fn mesh_sender(key: *const FlowKey, to: *mut Sender) -> u64 {
    read(|key| UDP_SENDERS.get_ptr(key), key, to)
}

/// Does a function of this file find something under the key? Written where the caller has room: a stack has
/// 512 bytes.
#[inline(always)]
pub fn look<K, V>(read: extern "C" fn(*const K, *mut V) -> u64, key: &K, to: &mut V) -> bool {
    read(key, to) == FOUND
}

/// Room for an entry.
#[inline(always)]
pub fn room<V: Copy>() -> V {
    // SAFETY: entries are integers, of which zeros are some.
    unsafe { core::mem::zeroed() }
}

#[inline(always)]
fn read<K, V>(get: impl Fn(&K) -> Option<*const V>, key: *const K, to: *mut V) -> u64 {
    const { assert!(align_of::<V>() >= 4 && size_of::<V>() % 4 == 0) };
    // SAFETY: `look`'s, if not null; the verifier wants to see the question.
    let Some(key) = (unsafe { key.as_ref() }) else { return NONE };
    if to.is_null() {
        return NONE;
    }
    let Some(found) = get(key) else { return NONE };
    copy(found, to);
    let mut looks = 1;
    while looks < LOOKS {
        let Some(again) = get(key) else { return NONE };
        if same(again, to) {
            return FOUND;
        }
        copy(again, to);
        looks += 1;
    }
    FOUND
}

/// Word by word, and each word once: others write it meanwhile. Volatile at both ends, or the compiler keeps all the
/// words on the stack as well.
#[inline(always)]
fn copy<V>(from: *const V, to: *mut V) {
    let mut n = 0;
    while n < size_of::<V>() / 4 {
        // SAFETY: inside both; aligned, see `read`.
        unsafe {
            let word = core::ptr::read_volatile(from.cast::<u32>().add(n));
            core::ptr::write_volatile(to.cast::<u32>().add(n), word);
        }
        n += 1;
    }
}

#[inline(always)]
fn same<V>(from: *const V, to: *const V) -> bool {
    let mut n = 0;
    while n < size_of::<V>() / 4 {
        // SAFETY: as in `copy`.
        let (one, other) = unsafe {
            (
                core::ptr::read_volatile(from.cast::<u32>().add(n)),
                core::ptr::read_volatile(to.cast::<u32>().add(n)),
            )
        };
        if one != other {
            return false;
        }
        n += 1;
    }
    true
}
