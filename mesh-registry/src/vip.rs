//! Picks virtual addresses: the same name gets the same address wherever it is free.
//!
//! A stable hash of the service's name chooses the first candidate; taken ones are stepped over. The network's
//! own address and the broadcast address are never given out (the first address of an IPv6 network neither:
//! it is the subnet-router anycast address).
//! Not here: what is taken (the store's claims, [`crate::intent`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_api::resource::VipPool;
use sha2::{Digest, Sha256};

/// Most candidates that are looked at: a whole /12; a fuller network than that is called full.
const MAX_PROBES: u64 = 1 << 20;

/// Every address of the pool is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pool {pool} of virtual addresses is full: give the service its own spec.vips, or widen Mesh.spec.vipPool"
)]
pub struct PoolFull {
    /// The network.
    pub pool: String,
}

/// Picks an IPv4 address.
pub fn allocate_v4(
    pool: &VipPool,
    namespace: &str,
    name: &str,
    mut taken: impl FnMut(IpAddr) -> bool,
) -> Result<Ipv4Addr, PoolFull> {
    let (network, length) = pool.v4;
    let size = 1_u64 << (32 - u32::from(length.min(30)));
    let full = || PoolFull { pool: format!("{network}/{length}") };
    // Hosts 1..=size - 2: neither the network's address nor the broadcast.
    probe(hash(namespace, name), u128::from(size - 2), |host| {
        let address = Ipv4Addr::from(u32::from(network) + host as u32 + 1);
        (!taken(address.into())).then_some(address)
    })
    .ok_or_else(full)
}

/// Picks an IPv6 address.
pub fn allocate_v6(
    pool: &VipPool,
    namespace: &str,
    name: &str,
    mut taken: impl FnMut(IpAddr) -> bool,
) -> Result<Ipv6Addr, PoolFull> {
    let (network, length) = pool.v6;
    let size = 1_u128 << (128 - u32::from(length.clamp(1, 126)));
    probe(hash(namespace, name), size - 2, |host| {
        let address = Ipv6Addr::from(u128::from(network) + host + 1);
        (!taken(address.into())).then_some(address)
    })
    .ok_or_else(|| PoolFull { pool: format!("{network}/{length}") })
}

fn probe<T>(start: u128, hosts: u128, mut pick: impl FnMut(u128) -> Option<T>) -> Option<T> {
    let probes = hosts.min(u128::from(MAX_PROBES));
    (0..probes).find_map(|step| pick((start % hosts + step) % hosts))
}

/// The same on every replica and in every version: written into people's firewalls.
fn hash(namespace: &str, name: &str) -> u128 {
    let digest = Sha256::digest(format!("{namespace}/{name}"));
    digest.iter().take(8).fold(0, |out, byte| (out << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn small() -> VipPool {
        VipPool {
            v4: (Ipv4Addr::new(10, 9, 0, 0), 29),
            v6: (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 120),
        }
    }

    #[test]
    fn every_host_is_given_out_once_and_then_the_pool_is_full() {
        let mut taken = BTreeSet::new();
        for i in 0..6 {
            let address = allocate_v4(&small(), "shop", &format!("s{i}"), |a| taken.contains(&a)).unwrap();
            assert!(taken.insert(IpAddr::from(address)));
        }
        let hosts: Vec<u8> =
            taken.iter().map(|a| a.to_string().rsplit('.').next().unwrap().parse().unwrap()).collect();
        assert_eq!(hosts, [1, 2, 3, 4, 5, 6], "neither network nor broadcast");
        let full = allocate_v4(&small(), "shop", "late", |a| taken.contains(&a)).unwrap_err();
        assert!(full.to_string().contains("10.9.0.0/29"), "{full}");
    }

    #[test]
    fn the_same_name_gets_the_same_address() {
        let pool = VipPool::default();
        let pick = |name: &str| {
            (allocate_v4(&pool, "shop", name, |_| false), allocate_v6(&pool, "shop", name, |_| false))
        };
        assert_eq!(pick("cart"), pick("cart"));
        assert_ne!(pick("cart"), pick("web"));
        let v6 = pick("cart").1.unwrap();
        assert_eq!(v6.segments()[..4], [0xfd00, 0x6e6d, 0, 0]);
    }

    #[test]
    fn a_full_v6_network_ends_too() {
        assert!(allocate_v6(&small(), "shop", "late", |_| true).is_err());
    }
}
