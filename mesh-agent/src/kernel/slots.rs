//! Slots of tables, written under readers: the writer's side of `Chosen::still` in mesh-ebpf.
//!
//! A slot says first that it is nobody's, and whose it is when all else of it is written. A program that reads
//! it meanwhile, before and after it looks whose it is, sees one of the two.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use mesh_common::maps as names;
use mesh_common::record::Endpoint;

use super::Kernel;
use super::error::ApplyError;
use crate::sys::Mapped;

/// The word that says whose a slot is: service and generation.
const OWNER: usize = offset_of!(Endpoint, service) / size_of::<u64>();
const _: () = assert!(
    offset_of!(Endpoint, service) % size_of::<u64>() == 0
        && offset_of!(Endpoint, generation) == offset_of!(Endpoint, service) + size_of::<u32>()
);

impl Kernel {
    /// Fills slots from `first` on.
    pub(super) fn put_slots(&self, first: u32, slots: &[Endpoint]) -> Result<(), ApplyError> {
        let slots_of = &self.endpoints;
        if slots.iter().zip(first..).all(|(slot, index)| put(slots_of, index, slot).is_some()) {
            return Ok(());
        }
        let source = format!("{} slots from {first} on are beyond {}", slots.len(), slots_of.len());
        Err(ApplyError { map: names::ENDPOINTS.name, full: true, source: source.into() })
    }
}

/// `None`: beyond the end.
fn put(slots: &Mapped<Endpoint>, index: u32, slot: &Endpoint) -> Option<()> {
    let owner = slots.word(index, OWNER)?;
    owner.store(0, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    slots.set(index, Endpoint { service: 0, generation: 0, ..*slot }).then_some(())?;
    let [s, g] = [slot.service, slot.generation].map(u32::to_ne_bytes);
    owner.store(u64::from_ne_bytes([s[0], s[1], s[2], s[3], g[0], g[1], g[2], g[3]]), Ordering::Release);
    Some(())
}
