//! Which endpoint of a service a connection gets. The rules are `mesh_common::pick`'s; here are the maps.
//!
//! A service that asks for nothing gets a weighted draw: a random number, a slot, perhaps its alias. One flag
//! of its entry says that there is more: affinity, limits, ejected endpoints, two draws, Maglev.
//!
//! Loops are the kernel's (`bpf_loop`): unrolled by the verifier, as loops of our own are, they would be a
//! million instructions.
//!
//! Invariant: what is returned belonged to the entry's own table when it was looked at.

use core::mem::offset_of;

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use mesh_common::addr;
use mesh_common::decide;
use mesh_common::pick::{self as rule, Choice, Standing};
use mesh_common::record::{
    Affinity, AffinityKey, Endpoint, Enrolled, Flow, Load, MAGLEV_ROW, MaglevRow, Rules, Service, flags,
};
use mesh_common::verdict::Verdict;

use crate::maps::{AFFINITY, ENDPOINTS, LOAD, RULES, SERVICE_LOAD};
use crate::socket::{add, exchange, zero};

const ANY: u64 = 0;

/// An endpoint that was chosen, in the slot where it was found.
pub struct Chosen {
    /// The slot.
    pub endpoint: &'static Endpoint,
    /// Of the table then.
    pub generation: u32,
    service: u32,
    /// What of the entry's flags its flows carry on: they are `flow`'s, too.
    pub followed: u32,
}

impl Chosen {
    /// What the destination asks: flags, policy set, port. To be read, as everything, before [`Chosen::still`]
    /// is asked.
    #[inline(always)]
    pub fn asks(&self) -> (u32, u32, u16) {
        // SAFETY: a live array's words; volatile, so that they are read here.
        unsafe {
            (
                core::ptr::read_volatile(&raw const self.endpoint.flags),
                core::ptr::read_volatile(&raw const self.endpoint.policy_set),
                core::ptr::read_volatile(&raw const self.endpoint.port_be),
            )
        }
    }

    /// Was the slot the table's until now? To be asked after it was read. User space never writes a range that
    /// an entry points to, and rests a freed one for a second; a program that is held for longer than that may
    /// have read what is another's by then.
    #[inline(always)]
    pub fn still(&self) -> bool {
        // SAFETY: a live array's words; volatile, because they may have changed.
        let (service, generation) = unsafe {
            (
                core::ptr::read_volatile(&raw const self.endpoint.service),
                core::ptr::read_volatile(&raw const self.endpoint.generation),
            )
        };
        service == self.service && generation == self.generation
    }
}

/// An endpoint of a service for a connection of `me` at `now`.
#[inline(always)]
pub fn pick(entry: &Service, fallback: bool, me: &Enrolled, now: u64) -> Result<Chosen, Verdict> {
    let own = own_table(entry, fallback);
    let endpoint = if entry.flags & flags::PICKY != 0 && own {
        picky(entry, me, now)?
    } else {
        drawn(entry, fallback).ok_or(Verdict::TableChanged)?
    };
    let followed = if own { entry.flags & (flags::EJECTS | flags::HASTY) } else { 0 };
    Ok(Chosen { endpoint, generation: entry.generation, service: entry.service, followed })
}

/// An endpoint by weight alone; `None`: the table is another by now.
#[inline(always)]
fn drawn(entry: &Service, fallback: bool) -> Option<&'static Endpoint> {
    let (first, len) =
        if fallback { (entry.fallback, entry.fallback_len) } else { (entry.table, entry.table_len) };
    let slot = weighted(entry, first, len)?;
    slot_of(entry, first + slot)
}

/// The endpoints of a route's weights are other services', whose rules are not this entry's.
#[inline(always)]
fn own_table(entry: &Service, fallback: bool) -> bool {
    !fallback || entry.fallback == entry.table
}

/// May the agent open this connection to the endpoint that it has chosen? `None`: yes.
#[inline(always)]
pub fn admit_leg(flow: &mut Flow) -> Option<Verdict> {
    if flow.service == 0 || flow.endpoint == 0 {
        return None;
    }
    let rules = rules_of(flow.service)?;
    let asked = rules.flags;
    flow.flags |= asked & (flags::EJECTS | flags::HASTY);
    if asked & flags::LIMITED == 0 {
        return None;
    }
    if reached(SERVICE_LOAD.get_ptr(flow.service)?, rules.max_connections) {
        return Some(Verdict::ServiceLimit);
    }
    reached(LOAD.get_ptr(flow.endpoint)?, rules.max_per_endpoint).then_some(Verdict::EndpointLimit)
}

/// The rules of a service.
#[inline(always)]
pub fn rules_of(service: u32) -> Option<&'static Rules> {
    // SAFETY: a live array; user space replaces single fields' worth of it at any time, and any mixture of
    // old and new is acted on for one connection at most.
    unsafe { RULES.get_ptr(service)?.as_ref() }
}

#[inline(always)]
fn reached(load: *const Load, limit: u32) -> bool {
    limit != 0 && word(load, offset_of!(Load, live)) >= u64::from(limit)
}

/// The counter at an offset, as it is now.
#[inline(always)]
fn word(load: *const Load, at: usize) -> u64 {
    // SAFETY: an aligned word of a live map value.
    unsafe { core::ptr::read_volatile(load.byte_add(at).cast::<u64>()) }
}

/// A search under way, for the kernel's loop.
#[repr(C)]
struct Seek<'a> {
    entry: &'a Service,
    search: rule::Search,
    now: u64,
    /// Of the client, for Maglev.
    number: u32,
}

impl Seek<'_> {
    /// One step. `true`: it was the last.
    #[inline(always)]
    fn step(&mut self, step: u32) -> bool {
        let Self { entry, search, now, number } = self;
        search.step(
            step,
            entry.table_len,
            |attempt| match entry.flags & (flags::MAGLEV | flags::LEAST) {
                0 => weighted(entry, entry.table, entry.table_len),
                flags::LEAST => least(entry),
                _ => maglev(entry, rule::again(*number, attempt)),
            },
            |slot| standing(entry, *now, slot),
        )
    }
}

extern "C" fn step(index: u64, seek: *mut c_void) -> u64 {
    // SAFETY: `picky` hands its own, and waits.
    let seek = unsafe { &mut *seek.cast::<Seek<'_>>() };
    u64::from(seek.step(index as u32))
}

/// The endpoint that [`mesh_pick`] finds.
#[inline(always)]
fn picky(entry: &Service, me: &Enrolled, now: u64) -> Result<&'static Endpoint, Verdict> {
    match mesh_pick(entry, me, now) {
        SERVICE_FULL => Err(Verdict::ServiceLimit),
        ENDPOINTS_FULL => Err(Verdict::EndpointLimit),
        CHANGED => Err(Verdict::TableChanged),
        slot => slot_of(entry, entry.table + slot as u32).ok_or(Verdict::TableChanged),
    }
}

/// What [`mesh_pick`] says where it finds no slot: numbers that no slot has.
const CHANGED: u64 = 1 << 32;
const SERVICE_FULL: u64 = 2 << 32;
const ENDPOINTS_FULL: u64 = 3 << 32;

/// The slot of a service's table for a connection of `me`, or one of the words above.
///
/// A global function, which the verifier looks at once for itself. Looked at anew from each of the ways that
/// lead to it, it was nine tenths of what the programs took to load.
#[unsafe(no_mangle)]
pub extern "C" fn mesh_pick(entry: *const Service, me: *const Enrolled, now: u64) -> u64 {
    // SAFETY: `picky`'s, if not null; the verifier wants to see the question.
    let (Some(entry), Some(me)) = (unsafe { entry.as_ref() }, unsafe { me.as_ref() }) else {
        return CHANGED;
    };
    if entry.flags & flags::LIMITED != 0
        && let Some(rules) = rules_of(entry.service)
        && let Some(total) = SERVICE_LOAD.get_ptr(entry.service)
        && reached(total, rules.max_connections)
    {
        return SERVICE_FULL;
    }
    if entry.flags & flags::AFFINE != 0
        && let Some(slot) = kept(entry, me.workload, now)
        && fits(entry, now, slot)
    {
        return chosen(entry, me, slot, now);
    }
    let number = if entry.flags & flags::MAGLEV != 0 { client(me) } else { 0 };
    let mut seek = Seek { entry, search: rule::Search::new(zero()), now, number };
    let step = step as extern "C" fn(u64, *mut c_void) -> u64;
    // SAFETY: the callback is a function of this program and gets what it expects.
    unsafe { bpf_loop(rule::steps(entry.table_len), step as *mut c_void, (&raw mut seek).cast(), 0) };
    match seek.search.choice() {
        Choice::Slot(slot) => chosen(entry, me, slot, now),
        Choice::Full => ENDPOINTS_FULL,
        Choice::Changed => CHANGED,
    }
}

/// Keeps the client at this slot's endpoint, where the service asks for that.
#[inline(always)]
fn chosen(entry: &Service, me: &Enrolled, slot: u32, now: u64) -> u64 {
    if entry.flags & flags::AFFINE != 0 {
        let Some(endpoint) = slot_of(entry, entry.table + slot) else {
            return CHANGED;
        };
        keep(entry, me.workload, endpoint.endpoint, now);
    }
    u64::from(slot)
}

/// The number of a client, the same for all its connections.
#[inline(always)]
fn client(me: &Enrolled) -> u32 {
    if addr::same(&me.addr4, &addr::UNSPECIFIED) { rule::client(&me.addr6) } else { rule::client(&me.addr4) }
}

/// May a client stay at this slot's endpoint? Not at a spare, which is there for when nobody else will do. A function
/// of its own, because the stack of all that call each other is short.
#[inline(never)]
fn fits(entry: &Service, now: u64, slot: u32) -> bool {
    let drawn = slot_of(entry, entry.table + slot).is_some_and(|endpoint| endpoint.weight != 0);
    drawn && matches!(standing(entry, now, slot), Some(Standing::Fit))
}

/// May this slot's endpoint be chosen? One whose ejection is over is let back.
#[inline(always)]
fn standing(entry: &Service, now: u64, slot: u32) -> Option<Standing> {
    if entry.flags & (flags::EJECTS | flags::LIMITED) == 0 {
        return Some(Standing::Fit);
    }
    let endpoint = slot_of(entry, entry.table + slot)?;
    let Some(load) = LOAD.get_ptr_mut(endpoint.endpoint) else {
        return Some(Standing::Fit);
    };
    if entry.flags & flags::EJECTS != 0 {
        let until = word(load, offset_of!(Load, ejected_until));
        if until > now {
            if !panic(entry.service) {
                return Some(Standing::Ejected);
            }
        } else if until != 0 {
            let_back(entry.service, load, until);
        }
    }
    let full = entry.flags & flags::LIMITED != 0
        && rules_of(entry.service).is_some_and(|rules| reached(load, rules.max_per_endpoint));
    Some(if full { Standing::Full } else { Standing::Fit })
}

/// Are so many of a service's endpoints ejected that all are used?
#[inline(always)]
fn panic(service: u32) -> bool {
    let (Some(rules), Some(total)) = (rules_of(service), SERVICE_LOAD.get_ptr(service)) else { return true };
    rule::panic(word(total, offset_of!(Load, ejected)), rules.endpoints)
}

/// The ejection that lasted until `until` is over.
#[inline(always)]
fn let_back(service: u32, load: *mut Load, until: u64) {
    // SAFETY: words of live map values.
    unsafe {
        if exchange(&raw mut (*load).ejected_until, until, 0)
            && let Some(total) = SERVICE_LOAD.get_ptr_mut(service)
        {
            add(&raw mut (*total).ejected, u64::MAX);
        }
    }
}

/// A slot of a table of `len` from `first` on, by weight.
#[inline(always)]
fn weighted(entry: &Service, first: u32, len: u32) -> Option<u32> {
    // SAFETY: no arguments.
    let (slot, fraction) = decide::draw(unsafe { bpf_get_prandom_u32() }, len);
    let drawn = slot_of(entry, first + slot)?;
    Some(decide::aliased(drawn, fraction).unwrap_or(slot))
}

/// Of two draws the one with fewer connections for its weight.
#[inline(always)]
fn least(entry: &Service) -> Option<u32> {
    let one = weighted(entry, entry.table, entry.table_len)?;
    let other = weighted(entry, entry.table, entry.table_len)?;
    let (a, b) = (slot_of(entry, entry.table + one)?, slot_of(entry, entry.table + other)?);
    let live = |endpoint| LOAD.get_ptr(endpoint).map_or(0, |load| word(load, offset_of!(Load, live)));
    let other_wins = rule::less_loaded(live(b.endpoint), b.weight, live(a.endpoint), a.weight);
    Some(if other_wins { other } else { one })
}

/// The slot that a number falls on in the rows behind the table.
#[inline(always)]
fn maglev(entry: &Service, number: u32) -> Option<u32> {
    let place = rule::maglev_entry(number, entry.table_len);
    let row = entry.table + entry.table_len + place / MAGLEV_ROW as u32;
    // SAFETY: a live array; a row has the size of a slot, and says whose it is in the same place.
    let row = unsafe { ENDPOINTS.get_ptr(row)?.cast::<MaglevRow>().as_ref() }?;
    if row.service != entry.service || row.generation != entry.generation {
        return None;
    }
    let slot = u32::from(row.slots[place as usize % MAGLEV_ROW]);
    (slot < entry.table_len).then_some(slot)
}

/// The slot of the endpoint that this client has kept so far, if its time is not over and it is still there.
#[inline(never)]
fn kept(entry: &Service, workload: u32, now: u64) -> Option<u32> {
    // SAFETY: a value that stays memory for the run of the program.
    let kept = unsafe { AFFINITY.get(&AffinityKey { workload, service: entry.service }) }?;
    if now.saturating_sub(kept.used_ns) >= rules_of(entry.service)?.affinity_ns {
        return None;
    }
    position(entry, kept.endpoint)
}

/// Where an endpoint stands: the slots of a table are in the order of their endpoints.
#[inline(always)]
fn position(entry: &Service, endpoint: u32) -> Option<u32> {
    let mut halving = Halving { entry, endpoint, from: 0, to: entry.table_len, found: u32::MAX };
    let halve = halve as extern "C" fn(u64, *mut c_void) -> u64;
    // SAFETY: as in `picky`. A table of 2³² slots needs no more steps.
    unsafe { bpf_loop(u32::BITS, halve as *mut c_void, (&raw mut halving).cast(), 0) };
    (halving.found != u32::MAX).then_some(halving.found)
}

/// A binary search under way.
#[repr(C)]
struct Halving<'a> {
    entry: &'a Service,
    endpoint: u32,
    from: u32,
    to: u32,
    found: u32,
}

extern "C" fn halve(_: u64, halving: *mut c_void) -> u64 {
    // SAFETY: `position` hands its own, and waits.
    let halving = unsafe { &mut *halving.cast::<Halving<'_>>() };
    let Halving { entry, endpoint, from, to, found } = halving;
    if *from >= *to {
        return 1;
    }
    let middle = *from + (*to - *from) / 2;
    let Some(here) = slot_of(entry, entry.table + middle) else { return 1 };
    if here.endpoint == *endpoint {
        *found = middle;
        return 1;
    }
    if here.endpoint < *endpoint {
        *from = middle + 1;
    } else {
        *to = middle;
    }
    0
}

#[inline(never)]
fn keep(entry: &Service, workload: u32, endpoint: u32, now: u64) {
    let value = Affinity { used_ns: now, endpoint, pad: 0 };
    // Without memory for it the client is not kept: the connection goes on.
    let _ = AFFINITY.insert(&AffinityKey { workload, service: entry.service }, &value, ANY);
}

/// A slot, if it is still one of this entry's table.
#[inline(always)]
pub fn slot_of(entry: &Service, index: u32) -> Option<&'static Endpoint> {
    // SAFETY: a live array.
    let slot = unsafe { ENDPOINTS.get_ptr(index)?.as_ref() }?;
    decide::belongs(slot, entry).then_some(slot)
}
