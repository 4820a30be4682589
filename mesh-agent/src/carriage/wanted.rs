//! What the maps are to hold of a workload's exclusions, and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_common::addr;
use mesh_common::transport::{
    EXCLUDED, ExcludeCidr, ExcludeKey, INBOUND, INTERFACE, KEPT, PORT, enrolled, owner,
};
use mesh_core::authorise::{IPV4, Network};
use mesh_core::outside::Egress;
use mesh_core::snapshot::{Exclusions, Transport, WorkloadId};

use crate::kernel::{Kernel, KernelError, Prefix, Splicing};

/// Bits of the owner in a prefix.
const OWNER_BITS: u32 = 32;

/// The keys that the maps hold.
#[derive(Default)]
pub(super) struct Held {
    pub keys: BTreeSet<ExcludeKey>,
    pub prefixes: BTreeSet<(u32, Prefix)>,
}

/// What a workload was told: its policies, and the indexes of the interfaces that they name, by direction.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Told {
    pub transport: Option<Arc<Transport>>,
    pub interfaces: [Vec<u32>; 2],
    /// Whether its connections may be spliced, where it asks for that.
    pub splicing: Splicing,
    /// Its policies tell answers from other datagrams.
    pub notes: bool,
    /// It is all that there is: what else there was is taken back.
    pub full: bool,
}

/// What the maps are to hold of a workload.
#[derive(Default)]
pub(super) struct Wanted {
    pub keys: BTreeSet<ExcludeKey>,
    pub prefixes: BTreeMap<Prefix, u32>,
    pub flags: u16,
    /// It takes no datagrams but answers.
    pub no_udp: bool,
}

impl Wanted {
    pub fn of(workload: WorkloadId, told: &Told) -> Self {
        let mut wanted = Self::default();
        if told.notes {
            wanted.flags |= enrolled::NOTES;
        }
        let Some(transport) = &told.transport else { return wanted };
        let [out, inbound] = &told.interfaces;
        wanted.add(workload, 0, &transport.outbound, out);
        wanted.add(workload, INBOUND, &transport.inbound, inbound);
        if !transport.outbound.is_empty() {
            wanted.flags |= enrolled::EXCLUDES;
        }
        wanted.no_udp = transport.no_udp;
        if transport.no_udp {
            wanted.flags |= enrolled::NOTES;
        }
        if transport.plain {
            wanted.flags |= enrolled::PLAIN;
        }
        if transport.egress == Egress::Listed {
            wanted.flags |= enrolled::ALLOW_LIST;
        }
        if told.splicing == Splicing::On {
            wanted.flags |= enrolled::SPLICE;
        }
        wanted
    }

    fn add(&mut self, workload: WorkloadId, inbound: u32, all: &Exclusions, interfaces: &[u32]) {
        let key = |what: u32, value: u32| ExcludeKey { workload, what: what | inbound, value };
        self.keys.extend(all.ports.iter().map(|port| key(PORT, u32::from(*port))));
        self.keys.extend(interfaces.iter().map(|index| key(INTERFACE, *index)));
        let owner = owner(workload, inbound);
        let prefix = |network: &Network| {
            let cidr = ExcludeCidr { owner, addr: addr::from_ip(network.first()) };
            (OWNER_BITS + u32::from(network.length()), cidr)
        };
        if all.networks.iter().any(Network::spans_v4) {
            // Its bits would catch IPv4 addresses, which are not its own.
            self.prefixes.insert(prefix(&IPV4), KEPT);
        }
        self.prefixes.extend(all.networks.iter().map(|network| (prefix(network), EXCLUDED)));
    }
}

/// The workload that a prefix is of.
fn workload_of(prefix: &Prefix) -> WorkloadId {
    prefix.1.owner >> 1
}

impl Held {
    pub fn of(kernel: &Kernel) -> Result<Self, KernelError> {
        let (keys, prefixes) = kernel.exclusions()?;
        let prefixes = prefixes.into_iter().map(|prefix| (workload_of(&prefix), prefix)).collect();
        Ok(Self { keys: keys.into_iter().collect(), prefixes })
    }

    pub fn keys_of(&self, workload: WorkloadId) -> BTreeSet<ExcludeKey> {
        let first = |workload| ExcludeKey { workload, what: 0, value: 0 };
        self.keys.range(first(workload)..first(workload + 1)).copied().collect()
    }

    pub fn prefixes_of(&self, workload: WorkloadId) -> BTreeSet<Prefix> {
        let least = (0, ExcludeCidr { owner: 0, addr: [0; 4] });
        self.prefixes.range((workload, least)..(workload + 1, least)).map(|(_, prefix)| *prefix).collect()
    }

    /// Those that hold something.
    pub fn workloads(&self) -> BTreeSet<WorkloadId> {
        let of_keys = self.keys.iter().map(|key| key.workload);
        of_keys.chain(self.prefixes.iter().map(|(workload, _)| *workload)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        let (address, length) = text.split_once('/').unwrap();
        Network::new(address.parse().unwrap(), length.parse().unwrap())
    }

    #[test]
    fn an_ipv6_network_excludes_no_ipv4_address() {
        let outbound = Exclusions {
            ports: [80].into(),
            networks: [network("::/0"), network("10.0.0.0/8")].into(),
            ..Exclusions::default()
        };
        let transport = Arc::new(Transport { outbound, no_udp: true, ..Transport::default() });
        let told = Told {
            transport: Some(transport),
            interfaces: [vec![3], vec![4]],
            full: true,
            ..Told::default()
        };
        let wanted = Wanted::of(7, &told);
        assert_eq!(wanted.flags, enrolled::EXCLUDES | enrolled::NOTES);
        let key = |what, value| ExcludeKey { workload: 7, what, value };
        let keys = [key(PORT, 80), key(INTERFACE, 3), key(INTERFACE | INBOUND, 4)];
        assert_eq!(wanted.keys, keys.into_iter().collect());
        let said: Vec<(u32, u32)> = wanted.prefixes.iter().map(|((len, _), value)| (*len, *value)).collect();
        assert_eq!(said, [(32, EXCLUDED), (128, KEPT), (136, EXCLUDED)]);
        assert!(
            wanted.prefixes.keys().all(|prefix| prefix.1.owner == owner(7, 0) && workload_of(prefix) == 7)
        );
        // All of IPv4 as well is all of both.
        let all =
            Exclusions { networks: [network("::/0"), network("0.0.0.0/0")].into(), ..Exclusions::default() };
        let transport = Arc::new(Transport { inbound: all, ..Transport::default() });
        let wanted = Wanted::of(7, &Told { transport: Some(transport), ..Told::default() });
        assert!(wanted.prefixes.values().all(|value| *value == EXCLUDED) && wanted.flags == 0);
    }
}
