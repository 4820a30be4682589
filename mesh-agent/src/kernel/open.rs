//! Flows that are open: which there are (the programs' arrays), and how they stand (their sockets).
//!
//! Nothing is written down for them: what an open connection has carried is read from its socket whenever
//! somebody asks, and is in the totals from its end on. So nothing can be counted twice or be lost with the
//! agent: whoever adds both reads the sockets first, then the totals, and leaves out what has ended since
//! ([`Kernel::still_open`]).

use std::collections::HashMap as StdHashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::maps::{HashMap, MapData};
use mesh_common::flows::{COOKIE, abroad, home, lives};
use mesh_common::record::{Flow, flow, telemetry};
use parking_lot::Mutex;

use super::Kernel;
use super::diag::{self, Standing};
use super::error::KernelError;
use crate::sys::{Mapped, in_netns};

/// An open connection of a workload.
#[derive(Clone, Copy, Debug)]
pub struct OpenFlow {
    /// Its socket's cookie.
    pub cookie: u64,
    /// What the programs know of it.
    pub flow: Flow,
    /// How it stands; zeros where its socket was not found: its workload has left, or it has just ended.
    pub standing: Standing,
}

/// The flows under way, and the namespaces that they may live in.
pub(super) struct Flows {
    /// Who lives where.
    pub homes: Mapped<u64>,
    pub at_home: Mapped<Flow>,
    pub abroad: Mutex<HashMap<MapData, u64, Flow>>,
    /// By workload.
    pub namespaces: Mutex<StdHashMap<u32, Namespace>>,
}

/// A workload's namespace.
#[derive(Clone)]
pub(super) struct Namespace {
    file: Arc<OwnedFd>,
    inode: u64,
}

/// Established, a workload's own, and not ended.
fn is_open(flow: &Flow) -> bool {
    let wanted = flow::ESTABLISHED | flow::BEGUN;
    flow.workload != 0 && flow.flags & (wanted | flow::LEG | flow::ENDED) == wanted
}

impl Flows {
    pub(super) fn get(&self, cookie: u64) -> Option<Flow> {
        let word = self.homes.get(home(cookie))?;
        if lives(word, cookie) {
            return self.at_home.get(home(cookie));
        }
        if abroad(word) == 0 {
            return None;
        }
        self.abroad.lock().get(&cookie, 0).ok()
    }

    /// All that are open. A home whose flow is just being written shows the one before it, which has ended.
    fn open(&self) -> Vec<OpenFlow> {
        let mut open = Vec::new();
        let mut away = false;
        for slot in 0..self.homes.len() {
            let Some(word) = self.homes.get(slot) else { break };
            away |= abroad(word) != 0;
            let cookie = word & COOKIE;
            if cookie != 0
                && let Some(flow) = self.at_home.get(slot).filter(is_open)
            {
                open.push(OpenFlow { cookie, flow, standing: Standing::default() });
            }
        }
        if away {
            // Entries that go under the walk are left out.
            let entries = self.abroad.lock();
            let found = entries.iter().take(mesh_common::maps::FLOWS_ABROAD.capacity as usize).flatten();
            open.extend(found.filter(|(_, flow)| is_open(flow)).map(|(cookie, flow)| OpenFlow {
                cookie,
                flow,
                standing: Standing::default(),
            }));
        }
        open
    }
}

impl Kernel {
    /// The namespace of a workload, to look at its sockets.
    pub(super) fn remember_namespace(&self, workload: u32, netns: BorrowedFd<'_>) -> std::io::Result<()> {
        let inode = rustix::fs::fstat(netns)?.st_ino;
        let file = Arc::new(netns.try_clone_to_owned()?);
        self.flows.namespaces.lock().insert(workload, Namespace { file, inode });
        Ok(())
    }

    /// A namespace is held no longer than its workload is enrolled.
    pub(super) fn forget_namespace(&self, workload: u32) {
        self.flows.namespaces.lock().remove(&workload);
    }

    /// Every open connection of this node's workloads, those abroad included, and how it stands. Asks each
    /// namespace that has one: some 0.1 ms and 1 µs a socket.
    pub fn open_flows(&self) -> Result<Vec<OpenFlow>, KernelError> {
        if self.flow_telemetry().level == telemetry::NONE {
            return Ok(Vec::new());
        }
        let mut open = self.flows.open();
        let namespaces = self.flows.namespaces.lock().clone();
        // Workloads that share a namespace are looked at together: the cookie says whose a socket is.
        let place = |flow: &OpenFlow| namespaces.get(&flow.flow.workload).map(|netns| netns.inode);
        open.sort_unstable_by_key(place);
        for flows in open.chunk_by_mut(|a, b| place(a) == place(b)) {
            let Some(netns) = flows.first().and_then(|first| namespaces.get(&first.flow.workload)) else {
                continue;
            };
            let places: StdHashMap<u64, usize> =
                flows.iter().enumerate().map(|(i, f)| (f.cookie, i)).collect();
            let asked = in_netns(netns.file.as_fd(), || {
                diag::sockets(|cookie, standing| {
                    if let Some(&place) = places.get(&cookie) {
                        flows[place].standing = standing;
                    }
                })
            });
            asked.map_err(|e| KernelError::new("the sockets of a namespace (sock_diag)", e))?;
        }
        Ok(open)
    }

    /// The workload on whose behalf the socket with this cookie was connected, while it is.
    pub fn opener(&self, cookie: u64) -> Option<u32> {
        self.flows.get(cookie & COOKIE).map(|flow| flow.workload).filter(|workload| *workload != 0)
    }

    /// Has this flow not ended, nor begun to? What was read from its socket is in no total that was read
    /// before this call.
    pub fn still_open(&self, flow: &OpenFlow) -> bool {
        let now = self.flows.get(flow.cookie);
        now.is_some_and(|now| now.start_ns == flow.flow.start_ns && now.flags & flow::ENDED == 0)
    }
}
