//! Which addresses are virtual, and workloads that say to have one.
//!
//! Nobody answers at a virtual address: it is what `connect()` is asked for, and an endpoint is dialled as it
//! stands. A workload's address that is a virtual one is therefore left out, unless the workload is of that very
//! service: then the address is somebody's (a database whose own address has become its service's).
//!
//! Cost: two look-ups a workload; where virtual addresses come or go, all workloads are looked through once.

use std::net::IpAddr;

use mesh_api::proto::v1;

use super::{Compiler, Work, address};
use crate::model::{Name, join};

impl Compiler {
    /// Notes which virtual addresses a changed service has. Before its ports are given out anew.
    pub(super) fn note_vips(&mut self, name: &Name, work: &mut Work) {
        let held = self.ports.get(name).and_then(|ports| ports.first());
        let before = held.and_then(|port| self.next.services.get(&port.id)).map(|s| s.vips.clone());
        let spec = self.model.service(name);
        let vips = spec.iter().filter(|s| !s.ports.is_empty()).flat_map(|s| &s.vips);
        let after: Vec<IpAddr> = vips.filter_map(|vip| address("", vip).ok()).collect();
        for gone in before.unwrap_or_default().into_iter().filter(|vip| !after.contains(vip)) {
            if self.vips.get(&gone) == Some(name) {
                self.vips.remove(&gone);
                work.vips.insert(gone);
            }
        }
        for vip in after {
            if self.vips.insert(vip, Name::clone(name)).as_ref() != Some(name) {
                work.vips.insert(vip);
            }
        }
    }

    /// Those whose addresses have become virtual, or are no longer.
    pub(super) fn find_touched_by_vips(&self, work: &mut Work) {
        let changed = std::mem::take(&mut work.vips);
        if changed.is_empty() {
            return;
        }
        let touched = |all: &[IpAddr]| all.iter().any(|ip| changed.contains(ip));
        let having = self.workloads.iter().filter(|held| touched(&held.0.addresses));
        work.workloads.extend(having.map(|held| Name::clone(&held.0.full_name)));
        let without = self.virtual_addresses.iter().filter(|(_, left_out)| touched(left_out));
        work.workloads.extend(without.map(|(name, _)| Name::clone(name)));
    }

    /// Whose virtual address this is, of which the workload is no endpoint.
    pub(super) fn foreign_vip(&self, ip: IpAddr, spec: &v1::Workload) -> Option<&Name> {
        let service = self.vips.get(&ip)?;
        let own = spec.services.iter().any(|m| join(&m.namespace, &m.service) == *service);
        (!own).then_some(service)
    }
}
