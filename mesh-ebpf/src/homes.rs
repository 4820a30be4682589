//! Look-ups of what every connection needs: at home first (`mesh_common::homes`), then in the hash.
//!
//! A stale entry is still one: homes are not written until they have rested. A hash's are read as
//! `steady.rs` does, but [`enrolled`]'s: those change when workloads come and go, and each is held by reference
//! for as long as the program runs.

use aya_ebpf::maps::Array;
use mesh_common::addr;
use mesh_common::homes::{self, Home, Lodger};
use mesh_common::record::{Enrolled, EnrolledKey, Service, ServiceKey};

use crate::maps::{ENROLLED, ENROLLED_HOMES, SERVICE_HOMES};
use crate::steady::{look, mesh_service};

/// What is enrolled under this key.
#[inline(always)]
pub fn enrolled(key: EnrolledKey) -> Option<&'static Enrolled> {
    match find(&ENROLLED_HOMES, &key, |a, b| a.id == b.id && a.kind == b.kind) {
        Found::Home(entry) => Some(entry),
        Found::Nowhere => None,
        // SAFETY: see the file's head.
        Found::AskHash => unsafe { ENROLLED.get(key) },
    }
}

/// Is there a service of this key? A copy, against whose generation slots are checked.
#[inline(always)]
pub fn service(key: &ServiceKey, to: &mut Service) -> bool {
    let same = |a: &ServiceKey, b: &ServiceKey| {
        addr::same(&a.addr, &b.addr)
            && a.scope == b.scope
            && a.port_be == b.port_be
            && a.proto == b.proto
            && a.network == b.network
    };
    match find(&SERVICE_HOMES, key, same) {
        Found::Home(entry) => {
            *to = *entry;
            true
        }
        Found::Nowhere => false,
        Found::AskHash => look(mesh_service, key, to),
    }
}

enum Found<V: 'static> {
    Home(&'static V),
    Nowhere,
    AskHash,
}

/// Equality is the caller's: derived, it would be a call of a loop over bytes.
#[inline(always)]
fn find<K: Lodger, V>(homes: &'static Array<Home<K, V>>, key: &K, same: impl Fn(&K, &K) -> bool) -> Found<V> {
    // SAFETY: a live array.
    if let Some(home) = homes.get_ptr(key.home()).and_then(|home| unsafe { home.as_ref() }) {
        // SAFETY: a word of it; volatile, because the agent writes it at any time.
        let state = unsafe { core::ptr::read_volatile(&raw const home.state) };
        if state == homes::EMPTY {
            return Found::Nowhere;
        }
        if state == homes::TAKEN {
            return if same(&home.key, key) { Found::Home(&home.value) } else { Found::Nowhere };
        }
    }
    Found::AskHash
}
