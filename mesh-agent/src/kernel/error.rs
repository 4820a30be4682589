//! What can go wrong between the agent and the kernel, each with its remedy.

use std::io;
use std::path::PathBuf;

/// A failure at start: nothing was left attached that had not been before.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not enough rights.
    #[error(
        "loading BPF programs is not permitted: run mesh-agent as root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)"
    )]
    NotPermitted,
    /// The kernel has no BPF, or not what is needed.
    #[error("Linux {found} is too old: mesh-agent needs 5.18 or newer")]
    TooOld {
        /// Its release.
        found: String,
    },
    /// The object does not load.
    #[error("the kernel refuses a BPF program or map: {0}")]
    Object(String),
    /// The pin directory can't be had.
    #[error("{path}: {source}: give --bpffs a directory where a bpffs is or can be mounted")]
    Pins {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The cgroup can't be opened.
    #[error("{path}: {source}: give --cgroup-root a directory of the mounted cgroup2 hierarchy")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program is attached there that allows no other.
    #[error(
        "{program}: another program is attached to {path} or above it that allows no other \
         (`bpftool cgroup tree` names it): detach it, or attach it with BPF_F_ALLOW_MULTI"
    )]
    Exclusive {
        /// Ours.
        program: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// A link could not be made or updated.
    #[error("{program}: attaching failed: {source}")]
    Attach {
        /// Ours.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A failed operation on a map or link.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct KernelError {
    what: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl KernelError {
    /// `what` names the map or link, and the operation.
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: source.into() }
    }
}

/// A change of the maps that stopped half-way; what came before it holds.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}{}", if *.full { ": raise its size in the agent's configuration" } else { "" })]
pub struct ApplyError {
    /// Which map.
    pub map: &'static str,
    /// It has no room.
    pub full: bool,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
