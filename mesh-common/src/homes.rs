//! An array in front of a hash. Each key has a home in the array, by its bits; a home that is taken holds the
//! whole entry. What a look-up in a hash costs (50 ns and more) is 5 ns at a home.
//!
//! A home says one of three things:
//! - [`EMPTY`]: no key of the hash has this home;
//! - [`TAKEN`]: one key of the hash has it, and key and value are here;
//! - [`SHARED`]: ask the hash. Always right.
//!
//! The programs read, the agent alone writes. Before it changes the hash it makes the home `SHARED`, and what
//! stands in a home is written only when the home has not been taken for [`REST`]: a program that still
//! reads the old entry reads it whole. So an agent that ends between any two steps leaves nothing wrong.

use core::time::Duration;

use crate::maps::{ENROLLED_HOMES, SERVICE_HOMES};
use crate::pick::mix;
use crate::record::{Enrolled, EnrolledKey, Service, ServiceKey};

/// No key has this home: what a fresh array says.
pub const EMPTY: u64 = 0;
/// The one key that has it is here.
pub const TAKEN: u64 = 1;
/// The hash knows.
pub const SHARED: u64 = 2;

/// How long a home that was left is not written.
pub const REST: Duration = Duration::from_secs(1);

/// A place in the array.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home<K, V> {
    /// [`EMPTY`], [`TAKEN`] or [`SHARED`].
    pub state: u64,
    /// Whose it is, if it is taken.
    pub key: K,
    /// What the hash says of the key.
    pub value: V,
}
const _: () = assert!(size_of::<Home<EnrolledKey, Enrolled>>() == 88);
// A cache line: the array begins with a page.
const _: () = assert!(size_of::<Home<ServiceKey, Service>>() == 64);

/// A key that has a home.
pub trait Lodger: Copy + Ord {
    /// No other key is smaller.
    const LOWEST: Self;

    /// The slot of its home.
    fn home(&self) -> u32;
}

const _: () = assert!(ENROLLED_HOMES.capacity.is_power_of_two() && SERVICE_HOMES.capacity.is_power_of_two());

impl Lodger for EnrolledKey {
    const LOWEST: Self = Self { kind: 0, id: 0 };

    /// Cookies and cgroup ids are counted up: neighbours have homes side by side.
    #[inline(always)]
    fn home(&self) -> u32 {
        (self.id ^ (self.kind << 9)) as u32 & (ENROLLED_HOMES.capacity - 1)
    }
}

impl Lodger for ServiceKey {
    const LOWEST: Self = Self { addr: [0; 4], scope: 0, port_be: 0, proto: 0, network: 0 };

    #[inline(always)]
    fn home(&self) -> u32 {
        let [a, b, c, d] = self.addr;
        let rest = (self.scope as u64) << 32
            | (self.port_be as u64) << 16
            | (self.proto as u64) << 8
            | self.network as u64;
        // The words that tell virtual addresses apart are the last one, and the port.
        let high = ((a as u64) << 32 | b as u64).rotate_left(17) ^ ((c as u64) << 32 | d as u64);
        (mix(high ^ rest.rotate_left(29)) >> 40) as u32 & (SERVICE_HOMES.capacity - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::from_ip;

    fn worst(keys: impl Iterator<Item = ServiceKey>) -> u8 {
        let mut homes = [0u8; SERVICE_HOMES.capacity as usize];
        keys.for_each(|key| homes[key.home() as usize] += 1);
        homes.into_iter().max().unwrap_or(0)
    }

    fn key(number: u32, port: u16) -> ServiceKey {
        let addr = from_ip(core::net::Ipv4Addr::from(0xf0f0_0000 + number).into());
        ServiceKey { addr, scope: 0, port_be: port.to_be(), proto: 6, network: 0 }
    }

    #[test]
    fn addresses_in_a_row_and_ports_in_a_row_spread() {
        // As many keys as homes: at random one home in a million would hold more than eight.
        let homes = SERVICE_HOMES.capacity;
        assert!(worst((0..homes).map(|n| key(n, 80))) <= 9);
        assert!(worst((0..homes).map(|n| key(7, 1000 + n as u16))) <= 9);
        let v6 = |n: u32| ServiceKey { addr: [0x6d6e_00fd, 0, 0, n.to_be()], ..key(0, 80) };
        assert!(worst((0..homes).map(v6)) <= 9);
    }

    #[test]
    fn namespaces_made_one_after_the_other_are_neighbours() {
        let key = |id| EnrolledKey { kind: 0, id };
        assert_eq!(key(4096).home() + 1, key(4097).home());
    }
}
