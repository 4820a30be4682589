//! Pinned maps of a node, read from outside the agent: also while none runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use mesh_common::{going::Agent, maps, record::Load, verdict::Verdict};

/// Where below `bpffs` the map `name` is pinned; the newest, if an agent of another ABI left one.
fn pin(bpffs: &Path, name: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![bpffs.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_name() == name {
                found.push(entry.path());
            }
        }
    }
    let abi = format!("{:016x}", maps::ABI);
    found.sort_by_key(|path| path.to_string_lossy().contains(&abi));
    found.pop().with_context(|| format!("no pinned {name} below {}", bpffs.display()))
}

fn open(bpffs: &Path, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(MapData::from_pin(pin(bpffs, name)?)?)?)
}

/// How often the programs decided `verdict`, over all CPUs.
pub fn verdict(bpffs: &Path, verdict: Verdict) -> Result<u64> {
    let map = PerCpuArray::<_, u64>::try_from(open(bpffs, maps::VERDICTS.name)?)?;
    Ok(map.get(&(verdict as u32), 0)?.iter().sum())
}

/// Connections that `LOAD` counts as live, over the first `endpoints` endpoint ids.
pub fn live(bpffs: &Path, endpoints: u32) -> Result<u64> {
    let map = Array::<_, [u64; size_of::<Load>() / 8]>::try_from(open(bpffs, maps::LOAD.name)?)?;
    (1..=endpoints).map(|id| Ok(map.get(&id, 0)?[0])).sum()
}

/// Since when the agent is going, nanoseconds of [`crate::clock::monotonic_ns`]; 0: it is not.
pub fn going_since(bpffs: &Path) -> Result<u64> {
    let map = Array::<_, [u64; size_of::<Agent>() / 8]>::try_from(open(bpffs, maps::AGENT.name)?)?;
    Ok(map.get(&0, 0)?[0])
}

/// The epoch that the maps hold, for reading it over and over.
pub struct Epoch(Array<MapData, u64>);

impl Epoch {
    /// Opens it.
    pub fn open(bpffs: &Path) -> Result<Self> {
        Ok(Self(Array::try_from(open(bpffs, maps::EPOCH.name)?)?))
    }

    /// Now.
    pub fn get(&self) -> Result<u64> {
        Ok(self.0.get(&0, 0)?)
    }
}
