//! What enrolment does to the kernel and the proxy, as one narrow trait: everything else here can be tested
//! without either.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mesh_common::addr::{UNSPECIFIED, from_ip};
use mesh_common::record::{Enrolled, EnrolledKey, KIND_CGROUP, KIND_NETNS, listener};
use parking_lot::Mutex;

use super::host::{Seat, Shared};
use super::listeners::Opened;
use crate::carriage::Carriage;
use crate::config::Numbers;
use crate::kernel::Kernel;
use crate::path::{Budget, Enrolment, Proxy};

/// A workload that is to be made part of the mesh.
pub struct Install {
    /// Its numbers.
    pub numbers: Numbers,
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// Listeners in it, and its cookie.
    pub opened: Opened,
    /// Its first slot in `LISTENERS`.
    pub slot: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// It shares the host's namespace, and is known by this.
    pub host: Option<Seat>,
}

impl Install {
    /// What the kernel knows it by.
    fn key(&self) -> EnrolledKey {
        self.host.map_or_else(|| key_of(self.opened.cookie), Seat::key)
    }
}

/// The kernel and the proxy, as far as enrolment needs them.
pub trait DataPath: Send + Sync + 'static {
    /// Word of a workload's home worker in `HEARTBEAT`.
    fn home(&self, workload: u32) -> u32;
    /// Makes it part of the mesh. On an error nothing of it is left.
    fn install(&self, install: Install) -> Result<(), String>;
    /// Puts in force what policies say of it, when it is known what it is.
    fn carry(&self, workload: u32);
    /// Undoes [`DataPath::install`]; also for what an earlier agent installed.
    fn remove(&self, key: EnrolledKey, workload: u32, slot: u32);
    /// Removes an entry whose workload lives on under another.
    fn forget(&self, key: EnrolledKey);
    /// Everybody that an earlier agent had installed has been installed again, or removed.
    fn settle(&self);
    /// What the kernel has enrolled.
    fn enrolled(&self) -> Vec<(EnrolledKey, Enrolled)>;
}

/// The real one.
pub struct Live {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// The proxy.
    pub proxy: Proxy,
    /// What each workload may use of the proxy.
    pub budget: Budget,
    /// How many captured connections of a workload may wait for the proxy.
    pub pending: u16,
    /// What transport policies say.
    pub transport: Arc<Carriage>,
    /// Who shares the host's namespace.
    pub shared: Mutex<Host>,
}

/// The host's namespace.
#[derive(Debug, Default)]
pub struct Host {
    /// Its cookie; 0: not known yet.
    cookie: u64,
    shared: Shared,
}

/// Key of a namespace.
pub fn key_of(cookie: u64) -> EnrolledKey {
    EnrolledKey { kind: KIND_NETNS, id: cookie }
}

fn first_v4(addresses: &[IpAddr]) -> Option<Ipv4Addr> {
    addresses.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None })
}

fn first_v6(addresses: &[IpAddr]) -> Option<Ipv6Addr> {
    addresses.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None })
}

impl Live {
    fn try_install(&self, install: Install) -> Result<(), String> {
        let key = install.key();
        let Install { numbers, netns, opened, slot, addresses, host } = install;
        let (addr4, addr6) = (first_v4(&addresses), first_v6(&addresses));
        let value = Enrolled {
            addr4: addr4.map_or(UNSPECIFIED, |ip| from_ip(ip.into())),
            addr6: addr6.map_or(UNSPECIFIED, |ip| from_ip(ip.into())),
            workload: numbers.workload,
            identity: numbers.identity,
            scope: 0,
            namespace: numbers.mesh_ns,
            listener_slot: slot,
            heartbeat_slot: self.proxy.home(numbers.workload),
            budget_pending: self.pending,
            flags: 0,
            port4_be: Opened::port_be(opened.out4.as_ref()),
            port6_be: Opened::port_be(opened.out6.as_ref()),
        };
        let Opened { cookie, out4, out6, inbound, dns, .. } = opened;
        let slots = [(listener::OUT4, &out4), (listener::OUT6, &out6), (listener::IN, &inbound)];
        let mut duplicates = Vec::new();
        for (offset, socket) in slots {
            if let Some(socket) = socket {
                duplicates.push((offset, socket.try_clone().map_err(|e| e.to_string())?));
            }
        }
        let hears = dns.as_ref().and_then(|ears| ears.sockets.first()).map(UdpSocket::try_clone);
        let hears = hears.transpose().map_err(|e| e.to_string())?;
        let enrolment = Enrolment {
            workload: numbers.workload,
            identity: numbers.identity,
            namespace: numbers.mesh_ns,
            netns: netns.clone(),
            out4,
            out6,
            inbound,
            dns,
            addr4,
            addr6,
            budget: self.budget,
        };
        self.proxy.add_workload(enrolment).map_err(|e| e.to_string())?;
        // The entry before the slots: where an earlier agent's entry is replaced, a live slot must never
        // stand beside its old ports. With an empty slot the proxy counts as gone.
        self.kernel.enrol(key, &value).map_err(|e| e.to_string())?;
        for (offset, socket) in duplicates {
            let done = self.kernel.set_listener(slot + offset, numbers.workload, socket.as_fd());
            done.map_err(|e| e.to_string())?;
        }
        // The one slot stands for all of them.
        let done = match &hears {
            Some(socket) => self.kernel.set_listener(slot + listener::DNS, numbers.workload, socket.as_fd()),
            None => self.kernel.clear_listener(slot + listener::DNS),
        };
        done.map_err(|e| e.to_string())?;
        let Some(seat) = host else {
            return self.kernel.attach_inbound(numbers.workload, netns.as_fd()).map_err(|e| e.to_string());
        };
        self.kernel.attach_host(numbers.workload, netns.as_fd()).map_err(|e| e.to_string())?;
        // Last: from now on callers of this namespace are asked for their cgroups.
        let mut host = self.shared.lock();
        host.cookie = cookie;
        host.shared.add(seat)?;
        self.tell(&host)
    }

    /// Says in the kernel who shares the host's namespace.
    fn tell(&self, host: &Host) -> Result<(), String> {
        let key = key_of(host.cookie);
        let told = match host.shared.packed() {
            Some(levels) => self.kernel.enrol(key, &Enrolled::shared(levels)),
            None => self.kernel.unenrol(key),
        };
        told.map_err(|e| e.to_string())
    }

    /// Takes back what was done for a workload in its namespace.
    fn leave_namespace(&self, key: EnrolledKey, workload: u32) -> Result<(), String> {
        if key.kind != KIND_CGROUP {
            return self.kernel.detach_inbound(workload).map_err(|e| e.to_string());
        }
        let mut host = self.shared.lock();
        host.shared.remove(key.id);
        self.tell(&host)?;
        let last = host.shared.packed().is_none();
        self.kernel.detach_host(workload, last).map_err(|e| e.to_string())
    }
}

impl DataPath for Live {
    fn home(&self, workload: u32) -> u32 {
        self.proxy.home(workload)
    }

    fn install(&self, install: Install) -> Result<(), String> {
        let (key, workload, slot) = (install.key(), install.numbers.workload, install.slot);
        let done = self.try_install(install);
        if done.is_err() {
            self.remove(key, workload, slot);
        }
        done
    }

    fn carry(&self, workload: u32) {
        self.transport.carry(workload);
    }

    fn remove(&self, key: EnrolledKey, workload: u32, slot: u32) {
        // First the entry: from then on nothing is captured any more.
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            tracing::warn!(workload, what, %error, "withdrawal is incomplete");
        };
        if let Err(error) = self.kernel.unenrol(key) {
            failed("entry", &error);
        }
        if let Err(error) = self.leave_namespace(key, workload) {
            failed("inbound program", &error);
        }
        for offset in [listener::OUT4, listener::OUT6, listener::IN, listener::DNS] {
            if let Err(error) = self.kernel.clear_listener(slot + offset) {
                failed("listener", &error);
            }
        }
        self.proxy.remove_workload(workload);
        self.transport.forget(workload);
    }

    fn forget(&self, key: EnrolledKey) {
        if let Err(error) = self.kernel.unenrol(key) {
            tracing::warn!(%error, "an old entry could not be removed");
        }
    }

    fn settle(&self) {
        let mut host = self.shared.lock();
        host.shared.settle();
        if host.cookie == 0 {
            return;
        }
        let done = self.tell(&host);
        let done = match host.shared.packed() {
            Some(_) => done,
            None => done.and(self.kernel.detach_host(0, true).map_err(|e| e.to_string())),
        };
        if let Err(error) = done {
            tracing::warn!(error, "the host's namespace is asked for workloads that are gone");
        }
    }

    fn enrolled(&self) -> Vec<(EnrolledKey, Enrolled)> {
        let mut all = self.kernel.enrolled().unwrap_or_else(|error| {
            tracing::warn!(%error, "what an earlier agent enrolled cannot be read");
            Vec::new()
        });
        all.retain(|(key, value)| {
            if let Some(levels) = value.levels() {
                let mut host = self.shared.lock();
                host.cookie = key.id;
                host.shared.adopt(levels);
            }
            value.levels().is_none()
        });
        all
    }
}
