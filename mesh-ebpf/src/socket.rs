//! Records on sockets, liveness of the agent, and atomic counters: what several programs need.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{
    bpf_map_lookup_elem, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use mesh_common::decide;
use mesh_common::record::Load;
use mesh_common::verdict::Verdict;

use crate::going::going;
use crate::maps::{HEARTBEAT, LISTENERS, LOAD, SERVICE_LOAD, SkStorage, VERDICTS};

const CREATE: u64 = 1;

/// The record on `sk`, if there is one.
#[inline(always)]
pub fn record<T, const F: usize>(map: &'static SkStorage<T, F>, sk: *mut c_void) -> Option<&'static mut T> {
    // SAFETY: `sk` comes from the program's context and is not null; the kernel returns null or a value
    // of the map's size that lives as long as the socket.
    unsafe { bpf_sk_storage_get(map.as_ptr(), sk, core::ptr::null_mut(), 0).cast::<T>().as_mut() }
}

/// Puts a record on `sk`, over an older one. `None`: no memory.
#[inline(always)]
pub fn put_record<T: Copy, const F: usize>(
    map: &'static SkStorage<T, F>,
    sk: *mut c_void,
    value: &mut T,
) -> Option<&'static mut T> {
    // A socket that connects a second time still has its first record.
    if let Some(old) = record(map, sk) {
        copy_words(old, value);
        return Some(old);
    }
    // SAFETY: as in `record`; the initial value is read by the kernel during the call.
    unsafe {
        bpf_sk_storage_get(map.as_ptr(), sk, core::ptr::from_mut(value).cast(), CREATE).cast::<T>().as_mut()
    }
}

/// `*to = *from`, word by word: as an assignment it would be a call of a loop over bytes.
#[inline(always)]
pub fn copy_words<T: Copy>(to: *mut T, from: *const T) {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() == 8) };
    let mut word = 0;
    while word < size_of::<T>() / 8 {
        // SAFETY: inside both values, which are aligned to words; volatile, so that it stays a copy of words.
        unsafe { to.cast::<u64>().add(word).write_volatile(from.cast::<u64>().add(word).read_volatile()) };
        word += 1;
    }
}

/// A zero that the compiler does not know: neighbouring fields set to it stay stores, and do not become a
/// call of a loop over bytes.
#[inline(always)]
pub fn zero() -> u32 {
    core::hint::black_box(0)
}

/// Removes the record from `sk`, if there is one.
#[inline(always)]
pub fn drop_record<T, const F: usize>(map: &'static SkStorage<T, F>, sk: *mut c_void) {
    // SAFETY: as in `record`.
    unsafe { bpf_sk_storage_delete(map.as_ptr(), sk) };
}

/// `*counter += n`, atomically; wraps.
#[inline(always)]
pub fn add(counter: *mut u64, n: u64) {
    // SAFETY: `counter` points into a map value that is live for the run of the program.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, n)
    };
}

/// `*word = new`, if it is still `old`: was it?
#[inline(always)]
pub fn exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: as in `add`.
    let (_, done) = unsafe {
        core::intrinsics::atomic_cxchg::<
            u64,
            { core::intrinsics::AtomicOrdering::SeqCst },
            { core::intrinsics::AtomicOrdering::SeqCst },
        >(word, old, new)
    };
    done
}

/// Counts a verdict.
#[inline(always)]
pub fn count(verdict: Verdict) {
    count_number(verdict as u32);
}

/// Counts a verdict by its number.
#[inline(always)]
pub fn count_number(verdict: u32) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict) {
        add(counter, 1);
    }
}

/// One connection more to an endpoint and its service; `u64::MAX`: one less.
#[inline(always)]
pub fn live(endpoint: u32, service: u32, n: u64) -> Option<*mut Load> {
    if let Some(load) = SERVICE_LOAD.get_ptr_mut(service) {
        // SAFETY: a live map value.
        add(unsafe { &raw mut (*load).live }, n);
    }
    let load = LOAD.get_ptr_mut(endpoint)?;
    // SAFETY: as above.
    add(unsafe { &raw mut (*load).live }, n);
    Some(load)
}

/// Does the agent take connections on this listener: is the socket there, and does its worker beat?
#[inline(always)]
pub fn agent_alive(listener_slot: u32, heartbeat_slot: u32) -> bool {
    // SAFETY: the map holds sockets; a non-null result is a referenced socket that is released at once.
    let there = unsafe {
        let sk = bpf_map_lookup_elem(
            core::ptr::from_ref(&LISTENERS).cast_mut().cast(),
            core::ptr::from_ref(&listener_slot).cast(),
        );
        if sk.is_null() {
            false
        } else {
            bpf_sk_release(sk);
            true
        }
    };
    there && worker_alive(heartbeat_slot)
}

/// Does this worker beat, and is its agent not going?
#[inline(always)]
pub fn worker_alive(heartbeat_slot: u32) -> bool {
    let Some(beat) = HEARTBEAT.get_ptr(heartbeat_slot) else {
        return false;
    };
    // SAFETY: an aligned word of a live array; user space writes it whole.
    let beat = unsafe { core::ptr::read_volatile(beat) };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    decide::alive(beat, now) && !going(now)
}
