//! What an operator asks of the kernel's side: what is attached where, what works on this kernel, how full
//! the maps are, what the programs cost.
//!
//! Reads only; the one thing that it switches on, for as long as it is asked to, is the kernel's counting of
//! runs. Maps are found by their names in `mesh_common::maps`: a new one shows without a word here.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mesh_api::local::{FeatureStatus, KernelStatus, MapStatus, ProgramStatus};
use mesh_common::maps::{self, Spec};
use mesh_common::record::telemetry;
use mesh_common::verdict::Verdict;

use super::Kernel;
use super::error::KernelError;
use super::load::{self, Link};
use super::splice::{self, Splicing};
use crate::sys::bpf::{self, AttachType};
use crate::sys::inspect::{self, MapInfo, ProgramInfo};

/// Links that are told one by one; of more only how many there are.
const LINKS_SHOWN: usize = 256;
const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

// `enum bpf_map_type`.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
const SOCKMAP: u32 = 15;
const SOCKHASH: u32 = 18;
const SK_STORAGE: u32 = 24;
const RING: u32 = 27;

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name.
    pub map: &'static str,
    /// Entries; of a ring the bytes that wait. `None`: nobody can count them.
    pub entries: Option<u64>,
    /// Room; 0: as much as there are sockets.
    pub capacity: u64,
}

fn kind(of: u32) -> &'static str {
    match of {
        HASH => "hash",
        ARRAY => "array",
        PERCPU_HASH => "hash, a value a CPU",
        PERCPU_ARRAY => "array, a value a CPU",
        LRU_HASH => "hash, oldest out",
        LPM_TRIE => "prefixes",
        SOCKMAP | SOCKHASH => "sockets",
        SK_STORAGE => "on sockets",
        RING => "ring, bytes",
        _ => "other",
    }
}

fn place(at: AttachType) -> &'static str {
    match at {
        AttachType::SockOps => "cgroup sock_ops",
        AttachType::SockRelease => "cgroup sock_release",
        AttachType::Connect4 => "cgroup connect4",
        AttachType::Connect6 => "cgroup connect6",
        AttachType::SendMsg4 => "cgroup sendmsg4",
        AttachType::SendMsg6 => "cgroup sendmsg6",
        AttachType::RecvMsg4 => "cgroup recvmsg4",
        AttachType::RecvMsg6 => "cgroup recvmsg6",
        AttachType::GetPeerName4 => "cgroup getpeername4",
        AttachType::GetPeerName6 => "cgroup getpeername6",
        AttachType::SkLookup => "netns sk_lookup",
    }
}

impl Kernel {
    fn pinned_map(&self, spec: Spec) -> io::Result<(OwnedFd, MapInfo)> {
        let map = bpf::pinned(&self.pins.join("maps").join(spec.name))?;
        let info = inspect::map_info(map.as_fd())?;
        Ok((map, info))
    }

    /// How full each map is. Looks through the hashes: for who asks now and then.
    pub fn fill(&self) -> Vec<Fill> {
        maps::ALL.iter().filter_map(|spec| self.fill_of(*spec).map(|(fill, ..)| fill).ok()).collect()
    }

    fn fill_of(&self, spec: Spec) -> Result<(Fill, OwnedFd, MapInfo), KernelError> {
        let failed = |e: io::Error| KernelError::new(format!("map {}, look at", spec.name), e);
        let (map, info) = self.pinned_map(spec).map_err(failed)?;
        let entries = self.entries(spec, map.as_fd(), info).map_err(failed)?;
        Ok((Fill { map: spec.name, entries, capacity: u64::from(info.capacity) }, map, info))
    }

    fn entries(&self, spec: Spec, map: BorrowedFd<'_>, info: MapInfo) -> io::Result<Option<u64>> {
        let of_array = || {
            // What an array holds is known to whoever fills it: a slot without a thing in it is empty.
            let loads = |map: &crate::sys::Mapped<mesh_common::record::Load>| {
                let used = |load: &mesh_common::record::Load| load.opened != 0 || load.live != 0;
                (0..map.len()).filter(|slot| map.get(*slot).as_ref().is_some_and(used)).count() as u64
            };
            Ok(match spec.name {
                name if name == maps::ENDPOINTS.name => self.slots_in_use(),
                name if name == maps::ENROLLED_HOMES.name => Some(self.enrolled.lock().at_home()),
                name if name == maps::SERVICE_HOMES.name => Some(self.services.lock().at_home()),
                name if name == maps::LOAD.name => Some(loads(&self.load)),
                name if name == maps::SERVICE_LOAD.name => Some(loads(&self.service_load)),
                name if name == maps::FLOWS.name || name == maps::FLOW_HOMES.name => {
                    Some(u64::from(self.flows().home))
                }
                name if name == maps::HEARTBEAT.name => {
                    let beats = |slot: &u32| self.heartbeat.get(*slot).is_some_and(|beat| beat != 0);
                    Some((0..self.heartbeat.len()).filter(beats).count() as u64)
                }
                _ if info.value == 8 && info.capacity > 1 => Some(inspect::taken(map, info)?),
                _ => None,
            })
        };
        match info.kind {
            HASH if spec.name == maps::FLOWS_ABROAD.name => Ok(Some(u64::from(self.flows().abroad))),
            HASH | LRU_HASH | LPM_TRIE => inspect::entries(map, info, 1).map(Some),
            PERCPU_HASH => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
                inspect::entries(map, info, cpus).map(Some)
            }
            ARRAY => of_array(),
            SOCKMAP if spec.name == maps::LISTENERS.name => Ok(Some(self.listening.lock().len() as u64)),
            RING => inspect::waiting(map).map(Some),
            _ => Ok(None),
        }
    }

    /// Slots of `ENDPOINTS` that an entry points to.
    fn slots_in_use(&self) -> Option<u64> {
        let services = self.held().ok()?.services;
        let mut ranges: Vec<(u32, u32)> = services
            .iter()
            .flat_map(|(_, s)| [(s.table, s.table_len), (s.fallback, s.fallback_len)])
            .filter(|(_, len)| *len != 0)
            .collect();
        // Entries of several addresses share a table.
        ranges.sort_unstable();
        ranges.dedup();
        Some(ranges.iter().map(|(_, len)| u64::from(*len)).sum())
    }

    /// Everything about the kernel's side. Blocks: the maps are walked, and `during` is called between two
    /// readings of what the programs cost, while the kernel counts that.
    pub fn view(&self, during: Option<&dyn Fn()>) -> Result<KernelStatus, KernelError> {
        let failed = |e: io::Error| KernelError::new("programs, look at", e);
        let mut programs = self.programs().map_err(failed)?;
        if let Some(during) = during {
            let counting = inspect::count_runs()
                .map_err(|e| KernelError::new("run statistics (BPF_ENABLE_STATS, Linux 5.8)", e))?;
            let before = self.programs().map_err(failed)?;
            during();
            programs = self.programs().map_err(failed)?;
            for (program, before) in programs.iter_mut().zip(before) {
                program.runs -= before.runs.min(program.runs);
                program.run_ns -= before.run_ns.min(program.run_ns);
            }
            drop(counting);
        }
        let counts = self.verdicts()?;
        Ok(KernelStatus {
            kernel: load::kernel().0,
            pins: self.pins.display().to_string(),
            adopted: self.adopted(),
            programs,
            features: self.features(),
            maps: maps::ALL.iter().map(|spec| self.map_status(*spec)).collect(),
            verdicts: Verdict::ALL.iter().map(|v| v.name().to_owned()).zip(counts).collect(),
        })
    }

    fn map_status(&self, spec: Spec) -> MapStatus {
        match self.fill_of(spec) {
            Ok((fill, map, info)) => MapStatus {
                name: spec.name.to_owned(),
                kind: kind(info.kind).to_owned(),
                entries: fill.entries,
                capacity: fill.capacity,
                bytes: memory(map.as_fd()),
                error: None,
            },
            Err(error) => {
                let error = Some(error.to_string());
                MapStatus { name: spec.name.to_owned(), error, ..MapStatus::default() }
            }
        }
    }

    fn programs(&self) -> io::Result<Vec<ProgramStatus>> {
        let attached = &self.attached;
        let mut all = Vec::new();
        for Link { name, at, fd } in &attached.links {
            let (link, program) = bpf::link_ids(fd.as_fd())?;
            let running = inspect::effective(attached.cgroup.as_fd(), *at)?;
            let place_in_line = running.iter().position(|id| *id == program);
            all.push(ProgramStatus {
                name: (*name).to_owned(),
                attach: place(*at).to_owned(),
                target: attached.path.display().to_string(),
                links: vec![link],
                order: place_in_line.map(|first| format!("{} of {}", first + 1, running.len())),
                ..costs(&info(program)?)
            });
        }
        let inbound = self.inbound.lock();
        let links: Vec<(u32, u32)> = inbound
            .links
            .values()
            .chain(&inbound.host)
            .filter_map(|link| bpf::link_ids(link.as_fd()).ok())
            .collect();
        for (name, program) in inbound.programs.named() {
            let costs = costs(&inspect::program_info(program)?);
            let mut ids: Vec<u32> = links.iter().filter(|ids| ids.1 == costs.id).map(|ids| ids.0).collect();
            let target = format!("{} namespaces", ids.len());
            ids.sort_unstable();
            ids.truncate(LINKS_SHOWN);
            let attach = place(AttachType::SkLookup).to_owned();
            all.push(ProgramStatus { name: name.to_owned(), attach, target, links: ids, ..costs });
        }
        for watch in &attached.watches {
            let Ok((link, program)) = watch.ids else { continue };
            all.push(ProgramStatus {
                name: watch.name.to_owned(),
                attach: "tracepoint".to_owned(),
                target: watch.tracepoint.to_owned(),
                links: vec![link],
                ..costs(&info(program)?)
            });
        }
        if let Some(program) = &*self.splice.program.lock() {
            let (name, attach) = (splice::PROGRAM.to_owned(), "sk_msg".to_owned());
            let target = format!("sockets of map {}", maps::SPLICE.name);
            all.push(ProgramStatus {
                name,
                attach,
                target,
                ..costs(&inspect::program_info(program.as_fd())?)
            });
        }
        Ok(all)
    }

    fn features(&self) -> Vec<FeatureStatus> {
        let (release, version) = load::kernel();
        let feature = |name: &str, off: Option<String>| FeatureStatus {
            name: name.to_owned(),
            on: off.is_none(),
            why: off.unwrap_or_default(),
        };
        let tested = (version < load::TESTED).then(|| {
            format!("Linux {release} is older than 6.1, the oldest that is tested; it works from 5.18 on")
        });
        let order = match inspect::knows_order(self.attached.cgroup.as_fd(), AttachType::Connect4) {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "Linux {release} attaches programs of a cgroup in the order they come (6.17 knows better): one \
                 that was there first sees a virtual address as the application wrote it"
            )),
            Err(error) => Some(error.to_string()),
        };
        let watched = self.attached.watches.iter().find_map(|watch| watch.ids.as_ref().err());
        let late = watched.map(|error| {
            format!("{error}: connections given to a killed agent in its last milliseconds are reset")
        });
        let runs = match fs::read_to_string(BPF_STATS) {
            Ok(text) if text.trim() == "1" => None,
            Ok(_) => Some("the kernel counts runs only while it is asked to: --measure".to_owned()),
            Err(error) => Some(format!("{BPF_STATS}: {error}")),
        };
        let flows = match self.attached.telemetry.level {
            telemetry::NONE => Some("--flow-telemetry none: flows are not counted".to_owned()),
            telemetry::TOTALS => Some("--flow-telemetry totals: ended flows leave no record".to_owned()),
            _ => None,
        };
        let by_endpoint =
            (!self.attached.telemetry.by_endpoint).then(|| "nobody asked: --flow-endpoints".to_owned());
        let splicing = match self.splicing() {
            Splicing::Unasked => Some("nobody asked: spec.splice of a TransportPolicy".to_owned()),
            Splicing::Trying => Some("it is being tried".to_owned()),
            Splicing::On => None,
            Splicing::Off(why) => Some(why),
        };
        vec![
            feature("tested kernel", tested),
            feature("first in line on the cgroup", order),
            feature("end of the agent seen at once", late),
            feature("run statistics", runs),
            feature("records of ended flows", flows),
            feature("flow totals by endpoint", by_endpoint),
            feature("splicing", splicing),
        ]
    }
}

fn info(program: u32) -> io::Result<ProgramInfo> {
    inspect::program_info(inspect::program(program)?.as_fd())
}

fn costs(info: &ProgramInfo) -> ProgramStatus {
    ProgramStatus { id: info.id, runs: info.runs, run_ns: info.run_ns, ..ProgramStatus::default() }
}

/// Bytes of kernel memory that a map holds, as the kernel reckons them.
fn memory(map: BorrowedFd<'_>) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
