//! Look-ups of what every connection needs: at home first (`mesh_common::homes`), then in the hash.
//!
//! A stale entry is still one: homes are not written until they have rested, and elements of a hash are
//! replaced whole and freed after a grace period.

use aya_ebpf::maps::{Array, HashMap};
use mesh_common::addr;
use mesh_common::homes::{self, Home, Lodger};
use mesh_common::record::{Enrolled, EnrolledKey, Service, ServiceKey};

use crate::maps::{ENROLLED, ENROLLED_HOMES, SERVICE_HOMES, SERVICES};

/// What is enrolled under this key.
#[inline(always)]
pub fn enrolled(key: EnrolledKey) -> Option<&'static Enrolled> {
    find(&ENROLLED_HOMES, &ENROLLED, &key, |a, b| a.id == b.id && a.kind == b.kind)
}

/// The service of this key.
#[inline(always)]
pub fn service(key: &ServiceKey) -> Option<&'static Service> {
    find(&SERVICE_HOMES, &SERVICES, key, |a, b| {
        addr::same(&a.addr, &b.addr)
            && a.scope == b.scope
            && a.port_be == b.port_be
            && a.proto == b.proto
            && a.network == b.network
    })
}

/// Equality is the caller's: derived, it would be a call of a loop over bytes.
#[inline(always)]
fn find<K: Lodger, V>(
    homes: &'static Array<Home<K, V>>,
    hash: &'static HashMap<K, V>,
    key: &K,
    same: impl Fn(&K, &K) -> bool,
) -> Option<&'static V> {
    // SAFETY: a live array.
    if let Some(home) = homes.get_ptr(key.home()).and_then(|home| unsafe { home.as_ref() }) {
        // SAFETY: a word of it; volatile, because the agent writes it at any time.
        let state = unsafe { core::ptr::read_volatile(&raw const home.state) };
        if state == homes::EMPTY {
            return None;
        }
        if state == homes::TAKEN {
            return same(&home.key, key).then_some(&home.value);
        }
    }
    // SAFETY: see the file's head.
    unsafe { hash.get(key) }
}
