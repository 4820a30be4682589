//! Loads the programs, adopts what an earlier agent has pinned, attaches.
//!
//! Pins: `<bpffs>/<ABI>/maps/<name>`, `…/links/<program>`, `…/inbound/<workload id>`,
//! `…/inbound/host`. Maps of another ABI are
//! never adopted. A link that exists is updated in place: no connection sees a moment without a program.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use mesh_common::record::telemetry;
use mesh_common::{maps, udp};

use super::error::LoadError;
use super::going;
use super::inbound::InboundPrograms;
use crate::identity::keep;
use crate::sys::bpf::{self, AttachType};

/// What to load and where.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A bpffs, or where to mount one.
    pub bpffs: PathBuf,
    /// The cgroup2 directory whose processes are seen.
    pub cgroup: PathBuf,
    /// Sizes other than the defaults: (map name, entries).
    pub sizes: Vec<(&'static str, u32)>,
    /// What is noted of flows.
    pub telemetry: FlowTelemetry,
    /// How long an unconnected UDP socket may be silent and keep its endpoint.
    pub udp_idle: Duration,
}

/// What the programs note of flows: decided when they are loaded, see [`telemetry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTelemetry {
    /// [`telemetry::NONE`], [`telemetry::TOTALS`] or [`telemetry::FULL`].
    pub level: u8,
    /// Totals by endpoint.
    pub by_endpoint: bool,
}

impl Default for FlowTelemetry {
    fn default() -> Self {
        Self { level: telemetry::FULL, by_endpoint: false }
    }
}

/// What is attached, for whoever asks.
pub struct Attached {
    /// Pinned maps were found.
    pub adopted: bool,
    /// Links on the cgroup; held open, and pinned as well.
    pub links: Vec<Link>,
    /// The cgroup.
    pub cgroup: fs::File,
    /// Its path.
    pub path: PathBuf,
    /// Who watches for the agent's end.
    pub watches: Vec<going::Watch>,
    /// What is noted of flows.
    pub telemetry: FlowTelemetry,
}

/// A program's link on the cgroup.
pub struct Link {
    /// The program's name in the object.
    pub name: &'static str,
    /// Where.
    pub at: AttachType,
    /// The link.
    pub fd: OwnedFd,
}

/// Programs on a cgroup: (name in the object, where).
///
/// In this order: what takes notes back is there before what makes them.
const CGROUP_PROGRAMS: [(&str, AttachType); 10] = [
    ("mesh_release", AttachType::SockRelease),
    ("mesh_sock_ops", AttachType::SockOps),
    ("mesh_peer4", AttachType::GetPeerName4),
    ("mesh_peer6", AttachType::GetPeerName6),
    ("mesh_recvmsg4", AttachType::RecvMsg4),
    ("mesh_recvmsg6", AttachType::RecvMsg6),
    ("mesh_sendmsg4", AttachType::SendMsg4),
    ("mesh_sendmsg6", AttachType::SendMsg6),
    ("mesh_connect4", AttachType::Connect4),
    ("mesh_connect6", AttachType::Connect6),
];

/// The program of inbound connections, attached per namespace.
pub(super) const INBOUND_PROGRAM: &str = "mesh_sk_lookup";
/// The same for a workload with policies.
pub(super) const POLICED_PROGRAM: &str = "mesh_sk_policed";
/// The same where nothing is asked of what arrives.
pub(super) const IDLE_PROGRAM: &str = "mesh_sk_idle";
/// The same for the namespace that workloads share with the host.
pub(super) const HOST_PROGRAM: &str = "mesh_sk_host";
/// File name of the pin of its link.
pub(super) const HOST_PIN: &str = "host";
/// For a workload without policies that takes no datagrams but answers.
pub(super) const NO_UDP_PROGRAM: &str = "mesh_sk_no_udp";
/// The same for one with policies.
pub(super) const CLOSED_PROGRAM: &str = "mesh_sk_closed";

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_OBJECT"));

/// Loaded and attached.
pub struct Loaded {
    /// Maps by name; programs.
    pub ebpf: Ebpf,
    /// What is attached.
    pub attached: Attached,
    /// For `sk_lookup` links.
    pub inbound: InboundPrograms,
    /// `<bpffs>/<ABI>`.
    pub pins: PathBuf,
}

/// Where this ABI's pins are.
pub fn pin_directory(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("{:016x}", maps::ABI))
}

/// Tries whether this kernel takes the programs, and leaves nothing.
pub fn verify() -> Result<(), LoadError> {
    check_kernel()?;
    let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(|e| refused(&e))?;
    for (name, _) in CGROUP_PROGRAMS {
        program_fd(&mut ebpf, name)?;
    }
    for name in [INBOUND_PROGRAM, POLICED_PROGRAM, IDLE_PROGRAM, HOST_PROGRAM, NO_UDP_PROGRAM, CLOSED_PROGRAM]
    {
        program_fd(&mut ebpf, name)?;
    }
    Ok(())
}

/// Does it all. On failure nothing stays that was not there before.
pub fn load(options: &LoadOptions) -> Result<Loaded, LoadError> {
    check_kernel()?;
    let pins = pin_directory(&options.bpffs);
    let mounted = mount_bpffs(&options.bpffs)?;
    let fresh = !pins.join("maps").join(maps::ENROLLED.name).exists();
    let result = load_into(options, &pins, !fresh);
    if result.is_err() && fresh {
        let _ = fs::remove_dir_all(&pins);
        if mounted {
            let _ = rustix::mount::unmount(&options.bpffs, rustix::mount::UnmountFlags::DETACH);
        }
    }
    result
}

fn load_into(options: &LoadOptions, pins: &Path, adopted: bool) -> Result<Loaded, LoadError> {
    for sub in ["maps", "links", "inbound"] {
        let path = pins.join(sub);
        fs::create_dir_all(&path).map_err(|source| LoadError::Pins { path, source })?;
    }
    let cgroup = fs::File::open(&options.cgroup)
        .map_err(|source| LoadError::Cgroup { path: options.cgroup.clone(), source })?;
    let cgroup_id =
        cgroup.metadata().map_err(|source| LoadError::Cgroup { path: options.cgroup.clone(), source })?.ino();

    let mut ebpf = load_object(options, pins)?;
    let mut links = Vec::new();
    for (name, at) in CGROUP_PROGRAMS {
        let program = program_fd(&mut ebpf, name)?;
        let fd = attach(name, at, program.as_fd(), cgroup.as_fd(), cgroup_id, pins, &options.cgroup)?;
        links.push(Link { name, at, fd });
    }
    let inbound = InboundPrograms {
        policed: program_fd(&mut ebpf, POLICED_PROGRAM)?,
        inbound: program_fd(&mut ebpf, INBOUND_PROGRAM)?,
        idle: program_fd(&mut ebpf, IDLE_PROGRAM)?,
        host: program_fd(&mut ebpf, HOST_PROGRAM)?,
        no_udp: program_fd(&mut ebpf, NO_UDP_PROGRAM)?,
        closed: program_fd(&mut ebpf, CLOSED_PROGRAM)?,
    };
    // Closed until it is known whose workload has no policies: the agent says so at its first epoch.
    update_inbound(pins, &inbound)?;
    let watches = going::watch(&mut ebpf);
    remove_other_abis(&options.bpffs, pins);
    let (path, telemetry) = (options.cgroup.clone(), options.telemetry);
    let attached = Attached { adopted, links, cgroup, path, watches, telemetry };
    Ok(Loaded { ebpf, attached, inbound, pins: pins.to_owned() })
}

fn load_object(options: &LoadOptions, pins: &Path) -> Result<Ebpf, LoadError> {
    let by_endpoint = u8::from(options.telemetry.by_endpoint);
    let idle = u64::try_from(options.udp_idle.as_nanos()).unwrap_or(u64::MAX);
    let mut loader = EbpfLoader::new();
    for spec in maps::ALL {
        loader.map_pin_path(spec.name, pins.join("maps").join(spec.name));
    }
    for (name, size) in &options.sizes {
        loader.map_max_entries(name, *size);
    }
    loader.override_global(telemetry::GLOBAL, &options.telemetry.level, true);
    loader.override_global(telemetry::BY_ENDPOINT, &by_endpoint, true);
    loader.override_global(udp::IDLE, &idle, true);
    loader.load(OBJECT).map_err(|e| refused(&e))
}

fn refused(error: &(dyn std::error::Error + 'static)) -> LoadError {
    let text = chain(error);
    tracing::debug!(%text, "the kernel refuses");
    if text.contains("Operation not permitted")
        || text.contains("Permission denied (os error 13)") && !text.to_lowercase().contains("verifier")
    {
        LoadError::NotPermitted
    } else {
        LoadError::Object(text)
    }
}

/// An error with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Loads one program of the object and returns its descriptor.
fn program_fd(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, LoadError> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| LoadError::Object(format!("program {name} is not in the object")))?;
    let begun = Instant::now();
    match program {
        Program::SockOps(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        _ => return Err(LoadError::Object(format!("program {name} has an unexpected type"))),
    }
    .map_err(|e| refused(&e))?;
    let checked = program.info().ok().and_then(|info| info.verified_instruction_count());
    tracing::debug!(program = name, took = ?begun.elapsed(), checked, "the kernel took a program");
    let fd = program.fd().map_err(|e| refused(&e))?;
    fd.as_fd().try_clone_to_owned().map_err(|e| LoadError::Object(format!("{name}: {e}")))
}

fn attach(
    name: &'static str,
    at: AttachType,
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
    pins: &Path,
    path: &Path,
) -> Result<OwnedFd, LoadError> {
    let failed = |source| LoadError::Attach { program: name, source };
    let pin = pins.join("links").join(name);
    for candidate in pinned_links(pins, name) {
        let Ok(link) = bpf::pinned(&candidate) else { continue };
        // A pin may outlive its cgroup, or be of an agent that looked at another one.
        if bpf::link_cgroup(link.as_fd()).map_err(failed)? == cgroup_id {
            bpf::link_update(link.as_fd(), program).map_err(failed)?;
            if candidate != pin {
                bpf::pin(link.as_fd(), &pin).map_err(failed)?;
            }
            return Ok(link);
        }
        fs::remove_file(&candidate).map_err(failed)?;
    }
    // First in line where the kernel knows how: others are to see the address that was chosen.
    let link = bpf::link_create(program, cgroup, at, bpf::BEFORE)
        .or_else(|e| {
            if e.raw_os_error() == Some(libc::EINVAL) {
                bpf::link_create(program, cgroup, at, 0)
            } else {
                Err(e)
            }
        })
        .map_err(|e| {
            if e.raw_os_error() == Some(libc::EPERM) {
                LoadError::Exclusive { program: name, path: path.to_owned() }
            } else {
                failed(e)
            }
        })?;
    bpf::pin(link.as_fd(), &pin).map_err(failed)?;
    Ok(link)
}

/// Where a program's link may be pinned: by an agent of this ABI, then by one of another.
fn pinned_links(pins: &Path, name: &str) -> Vec<PathBuf> {
    let others = pins.parent().map(abis_at).unwrap_or_default();
    std::iter::once(pins.to_owned())
        .chain(others.into_iter().filter(|o| o != pins))
        .map(|p| p.join("links").join(name))
        .collect()
}

/// Pin directories of any ABI.
fn abis_at(bpffs: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(bpffs) else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| {
            e.file_name().to_str().is_some_and(|n| n.len() == 16 && u64::from_str_radix(n, 16).is_ok())
        })
        .map(|e| e.path())
        .filter(|p| p.join("maps").is_dir())
        .collect()
}

/// Their programs are replaced; their maps go with their last reader.
fn remove_other_abis(bpffs: &Path, ours: &Path) {
    for path in abis_at(bpffs).into_iter().filter(|p| p != ours) {
        let removed = remove_tree(&path).and_then(|_| fs::remove_dir(&path));
        tracing::info!(path = %path.display(), ?removed, "took over from an agent of another ABI");
    }
}

/// Links of namespaces that an earlier agent made get the new program. The host's own is never closed.
fn update_inbound(pins: &Path, programs: &InboundPrograms) -> Result<(), LoadError> {
    let path = pins.join("inbound");
    let entries = fs::read_dir(&path).map_err(|source| LoadError::Pins { path: path.clone(), source })?;
    for entry in entries.flatten() {
        let host = entry.file_name() == HOST_PIN;
        let updated = bpf::pinned(&entry.path()).and_then(|link| {
            let program = if host { programs.host.as_fd() } else { programs.instead_of(link.as_fd()) };
            bpf::link_update(link.as_fd(), program)
        });
        if updated.is_err() {
            // The namespace is gone: so is the link.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Release and version of the kernel.
pub(super) fn kernel() -> (String, (u32, u32)) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).filter_map(|p| p.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    (release, version)
}

/// The oldest kernel that is tested.
pub(super) const TESTED: (u32, u32) = (6, 1);

fn check_kernel() -> Result<(), LoadError> {
    let (release, version) = kernel();
    if version < (5, 18) {
        return Err(LoadError::TooOld { found: release });
    }
    if version < TESTED {
        tracing::warn!(%release, "mesh-agent is tested from Linux 6.1 on");
    }
    Ok(())
}

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// How a bpffs that an agent mounted is known again.
const MOUNT_SOURCE: &str = "nodemesh";

/// Makes the directory, and mounts a bpffs on it unless it is in one. `true`: mounted now.
fn mount_bpffs(path: &Path) -> Result<bool, LoadError> {
    let failed = |source: io::Error| LoadError::Pins { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)?;
    let stat = rustix::fs::statfs(path).map_err(|e| failed(e.into()))?;
    if stat.f_type as u64 == BPF_FS_MAGIC {
        return Ok(false);
    }
    rustix::mount::mount(MOUNT_SOURCE, path, "bpf", rustix::mount::MountFlags::empty(), None).map_err(
        |e| {
            if e == rustix::io::Errno::PERM { LoadError::NotPermitted } else { failed(e.into()) }
        },
    )?;
    Ok(true)
}

/// Removes our pins under `bpffs`, of any ABI, and so detaches every program; unmounts the bpffs if an agent
/// mounted it. Returns how many pins there were. Foreign pins stay.
pub fn cleanup(bpffs: &Path) -> io::Result<usize> {
    if !bpffs.exists() || rustix::fs::statfs(bpffs)?.f_type as u64 != BPF_FS_MAGIC {
        return Ok(0);
    }
    let mut removed = 0;
    for path in abis_at(bpffs) {
        removed += remove_tree(&path)?;
        fs::remove_dir(path)?;
    }
    match fs::remove_file(bpffs.join(keep::MAP)) {
        Ok(()) => removed += 1,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Every bpffs shows two files of the kernel's own.
    let foreign = |name: std::ffi::OsString| name != "maps.debug" && name != "progs.debug";
    if !fs::read_dir(bpffs)?.flatten().any(|entry| foreign(entry.file_name())) {
        if mounted_by_us(bpffs)? {
            rustix::mount::unmount(bpffs, rustix::mount::UnmountFlags::DETACH)?;
        }
        // Busy where it is somebody else's mount point: theirs to keep.
        let _ = fs::remove_dir(bpffs);
    }
    Ok(removed)
}

/// Is `path` a mount whose source is [`MOUNT_SOURCE`]?
fn mounted_by_us(path: &Path) -> io::Result<bool> {
    let path = fs::canonicalize(path)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(MOUNT_SOURCE) && fields.next() == path.to_str()
    }))
}

fn remove_tree(path: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            removed += remove_tree(&entry.path())?;
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}
