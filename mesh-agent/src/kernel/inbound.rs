//! Which program looks at what arrives in a workload's namespace: one link a workload, pinned under its id.
//!
//! | program | when |
//! |---|---|
//! | [`POLICED_PROGRAM`] | the workload has policies, or it is not known yet: what no entry names is closed, and datagrams are authorised |
//! | [`INBOUND_PROGRAM`] | it has none, and an entry of its asks for the proxy |
//! | [`HOST_PROGRAM`] | the host's namespace, on one link for all workloads that share it: never closed |
//! | [`IDLE_PROGRAM`] | nothing is asked of what arrives: passes, for a quarter of the cost |
//! | [`NO_UDP_PROGRAM`], [`CLOSED_PROGRAM`] | the first two for a workload that takes no datagrams but answers |
//!
//! On loopback all three give captured connections that were spread to the agent's listener.
//!
//! Invariant: a program that looks is linked, and senders are told by `POLICED` that they have to prove who they are,
//! before `WORKLOADS` holds the first entry that asks for it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData};
use mesh_common::record::{Workload, WorkloadKey, flags};

use super::Kernel;
use super::error::KernelError;
use super::load::{
    CLOSED_PROGRAM, HOST_PIN, HOST_PROGRAM, IDLE_PROGRAM, INBOUND_PROGRAM, NO_UDP_PROGRAM, POLICED_PROGRAM,
};
use crate::sys::bpf::{self, AttachType};
use crate::sys::inspect;

/// The programs of [`super::load`].
pub struct InboundPrograms {
    /// [`POLICED_PROGRAM`].
    pub policed: OwnedFd,
    /// [`INBOUND_PROGRAM`].
    pub inbound: OwnedFd,
    /// [`IDLE_PROGRAM`].
    pub idle: OwnedFd,
    /// [`HOST_PROGRAM`].
    pub host: OwnedFd,
    /// [`NO_UDP_PROGRAM`].
    pub no_udp: OwnedFd,
    /// [`CLOSED_PROGRAM`].
    pub closed: OwnedFd,
}

impl InboundPrograms {
    /// With their names.
    pub fn named(&self) -> [(&'static str, BorrowedFd<'_>); 6] {
        [
            (POLICED_PROGRAM, self.policed.as_fd()),
            (INBOUND_PROGRAM, self.inbound.as_fd()),
            (IDLE_PROGRAM, self.idle.as_fd()),
            (HOST_PROGRAM, self.host.as_fd()),
            (NO_UDP_PROGRAM, self.no_udp.as_fd()),
            (CLOSED_PROGRAM, self.closed.as_fd()),
        ]
    }

    /// For a link that an earlier agent made: closed for connections, until it is known whose workload has no
    /// policies; for datagrams as it was.
    pub(super) fn instead_of(&self, link: BorrowedFd<'_>) -> BorrowedFd<'_> {
        if takes_no_udp(link) { self.closed.as_fd() } else { self.policed.as_fd() }
    }
}

/// Does the program of a link let no datagrams in but answers?
fn takes_no_udp(link: BorrowedFd<'_>) -> bool {
    bpf::link_ids(link)
        .and_then(|(_, program)| inspect::program(program))
        .and_then(|program| inspect::program_info(program.as_fd()))
        .is_ok_and(|info| info.name == NO_UDP_PROGRAM || info.name == CLOSED_PROGRAM)
}

/// See the file's head.
pub(super) struct Inbound {
    pub(super) programs: InboundPrograms,
    pub(super) links: HashMap<u32, OwnedFd>,
    /// In the host's namespace, while a workload shares it.
    pub(super) host: Option<OwnedFd>,
    /// Workloads of which it is known that they have no policies.
    open: HashSet<u32>,
    /// Workloads that take no datagrams but answers.
    no_udp: HashSet<u32>,
    /// Entries that ask something of what arrives, by workload.
    asking: HashMap<u32, HashSet<WorkloadKey>>,
    /// The same the other way round.
    asked_by: HashMap<WorkloadKey, u32>,
    /// Those of them that have a policy set.
    policed: HashSet<WorkloadKey>,
    /// `POLICED`, where the programs read how many those are.
    count: Array<MapData, u64>,
}

fn asks(value: &Workload) -> bool {
    let wants = flags::INBOUND_PROXY | flags::STRICT;
    value.flags & flags::LOCAL != 0 && (value.flags & wants != 0 || value.policy_set != 0)
}

impl Inbound {
    pub(super) fn new(
        programs: InboundPrograms,
        count: Array<MapData, u64>,
        held: &[(WorkloadKey, Workload)],
    ) -> Result<Self, KernelError> {
        let mut this = Self {
            programs,
            links: HashMap::new(),
            host: None,
            open: HashSet::new(),
            no_udp: HashSet::new(),
            asking: HashMap::new(),
            asked_by: HashMap::new(),
            policed: HashSet::new(),
            count,
        };
        for (key, value) in held.iter().filter(|(_, value)| asks(value)) {
            this.note(*key, value.workload);
            if value.policy_set != 0 {
                this.policed.insert(*key);
            }
        }
        this.say_count()?;
        Ok(this)
    }

    fn say_count(&mut self) -> Result<(), KernelError> {
        let count = self.policed.len() as u64;
        self.count.set(0, count, 0).map_err(|e| KernelError::new("map POLICED, write", e))
    }

    /// To be called before an entry is written.
    pub(super) fn wake(&mut self, key: &WorkloadKey, value: &Workload) -> Result<(), KernelError> {
        if !asks(value) {
            return Ok(());
        }
        let policed = value.policy_set != 0 && self.policed.insert(*key);
        if policed {
            self.say_count()?;
        }
        if self.asked_by.get(key) != Some(&value.workload) {
            // An address that changes hands.
            self.forget(key)?;
            self.note(*key, value.workload);
        } else if !policed {
            return Ok(());
        }
        // Datagrams are authorised by another program, which is not to wait for who says whose addresses are closed.
        let opened = policed && self.open.remove(&value.workload);
        if opened || self.asking.get(&value.workload).is_some_and(|keys| keys.len() == 1) {
            self.link(value.workload)?;
        }
        Ok(())
    }

    /// To be called after an entry was written, or removed.
    pub(super) fn rest(&mut self, key: &WorkloadKey, value: Option<&Workload>) -> Result<(), KernelError> {
        if value.is_none_or(|value| value.policy_set == 0) && self.policed.remove(key) {
            self.say_count()?;
        }
        if value.is_some_and(asks) { Ok(()) } else { self.forget(key) }
    }

    /// Has an entry of its a policy set?
    fn is_policed(&self, workload: u32) -> bool {
        self.asking.get(&workload).is_some_and(|keys| keys.iter().any(|key| self.policed.contains(key)))
    }

    fn note(&mut self, key: WorkloadKey, workload: u32) {
        self.asking.entry(workload).or_default().insert(key);
        self.asked_by.insert(key, workload);
    }

    fn forget(&mut self, key: &WorkloadKey) -> Result<(), KernelError> {
        let Some(workload) = self.asked_by.remove(key) else { return Ok(()) };
        let Some(keys) = self.asking.get_mut(&workload) else { return Ok(()) };
        keys.remove(key);
        if keys.is_empty() {
            self.asking.remove(&workload);
            self.link(workload)?;
        }
        Ok(())
    }

    /// Links what the workload needs now.
    fn link(&self, workload: u32) -> Result<(), KernelError> {
        let Some(link) = self.links.get(&workload) else { return Ok(()) };
        let program = if self.no_udp.contains(&workload) {
            if self.open.contains(&workload) { &self.programs.no_udp } else { &self.programs.closed }
        } else if !self.open.contains(&workload) {
            &self.programs.policed
        } else if self.asking.contains_key(&workload) {
            &self.programs.inbound
        } else {
            &self.programs.idle
        };
        bpf::link_update(link.as_fd(), program.as_fd()).map_err(|e| failed(workload, e))
    }
}

fn failed(workload: u32, error: io::Error) -> KernelError {
    KernelError::new(format!("inbound program of workload {workload}"), error)
}

impl Kernel {
    /// Attaches an inbound program to a namespace, under the workload's id: closed for addresses that no entry
    /// names, until [`Kernel::set_policed`]. Where an earlier agent has done so, the link is kept if it is still
    /// that namespace's, which the caller knows by the workload being the same.
    pub fn attach_inbound(&self, workload: u32, netns: BorrowedFd<'_>) -> Result<(), KernelError> {
        let pin = self.inbound_pin(workload);
        let failed = |e: io::Error| failed(workload, e);
        self.remember_namespace(workload, netns).map_err(failed)?;
        let mut inbound = self.inbound.lock();
        inbound.open.remove(&workload);
        let link = attach(inbound.programs.policed.as_fd(), netns, &pin).map_err(failed)?;
        // Kept from an earlier agent, it may be one that lets no datagrams in.
        if takes_no_udp(link.as_fd()) {
            inbound.no_udp.insert(workload);
        }
        inbound.links.insert(workload, link);
        Ok(())
    }

    /// Says whether a workload has policies: then the addresses that no entry names are closed.
    pub fn set_policed(&self, workload: u32, policed: bool) -> Result<(), KernelError> {
        let mut inbound = self.inbound.lock();
        // An entry knows better than who looked a moment ago.
        if policed || inbound.is_policed(workload) {
            inbound.open.remove(&workload);
        } else {
            inbound.open.insert(workload);
        }
        inbound.link(workload)
    }

    /// Says whether a workload takes no datagrams but answers.
    pub fn set_no_udp(&self, workload: u32, no_udp: bool) -> Result<(), KernelError> {
        let mut inbound = self.inbound.lock();
        let news = if no_udp { inbound.no_udp.insert(workload) } else { inbound.no_udp.remove(&workload) };
        if news { inbound.link(workload) } else { Ok(()) }
    }

    /// Detaches it.
    pub fn detach_inbound(&self, workload: u32) -> Result<(), KernelError> {
        self.forget_namespace(workload);
        let mut inbound = self.inbound.lock();
        inbound.links.remove(&workload);
        inbound.open.remove(&workload);
        inbound.no_udp.remove(&workload);
        unpin(&self.inbound_pin(workload)).map_err(|e| failed(workload, e))?;
        drop(inbound);
        self.forget_datagrams(workload)
    }

    /// Attaches the host's program to the namespace that this workload shares with it; once, whoever else does.
    pub fn attach_host(&self, workload: u32, netns: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.remember_namespace(workload, netns).map_err(|e| failed(workload, e))?;
        let mut inbound = self.inbound.lock();
        if inbound.host.is_none() {
            let pin = self.pins.join("inbound").join(HOST_PIN);
            let link = attach(inbound.programs.host.as_fd(), netns, &pin);
            inbound.host = Some(link.map_err(|e| failed(workload, e))?);
        }
        Ok(())
    }

    /// Forgets a workload of the host's namespace; `last`: nobody shares it any more.
    pub fn detach_host(&self, workload: u32, last: bool) -> Result<(), KernelError> {
        self.forget_namespace(workload);
        self.forget_datagrams(workload)?;
        if !last {
            return Ok(());
        }
        self.inbound.lock().host = None;
        unpin(&self.pins.join("inbound").join(HOST_PIN)).map_err(|e| failed(workload, e))
    }

    fn inbound_pin(&self, workload: u32) -> PathBuf {
        self.pins.join("inbound").join(workload.to_string())
    }
}

/// The link that an earlier agent has pinned, if it is still that namespace's; else a new one.
fn attach(program: BorrowedFd<'_>, netns: BorrowedFd<'_>, pin: &Path) -> io::Result<OwnedFd> {
    if let Ok(link) = bpf::pinned(pin) {
        if bpf::link_netns(link.as_fd()).is_ok_and(|inode| Some(inode) == netns_inode(netns)) {
            return Ok(link);
        }
        fs::remove_file(pin)?;
    }
    let link = bpf::link_create(program, netns, AttachType::SkLookup, 0)?;
    bpf::pin(link.as_fd(), pin)?;
    Ok(link)
}

fn unpin(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn netns_inode(netns: BorrowedFd<'_>) -> Option<u32> {
    rustix::fs::fstat(netns).ok().map(|stat| stat.st_ino as u32)
}
