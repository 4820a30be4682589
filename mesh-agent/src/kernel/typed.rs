//! Maps of the loaded object as what they are: typed, memory-mapped, a descriptor, or a hash with its homes.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use aya::maps::{Map, MapData, MapError};
use mesh_common::homes::{Home, Lodger};
use mesh_common::maps::Spec;
use parking_lot::Mutex;

use super::error::LoadError;
use super::homes::Homed;
use crate::sys::Mapped;

pub(super) fn of_map(spec: Spec, error: &dyn std::error::Error) -> LoadError {
    LoadError::Object(format!("map {}: {error}", spec.name))
}

fn data(map: &Map) -> Option<&MapData> {
    Some(match map {
        Map::Array(d)
        | Map::HashMap(d)
        | Map::LpmTrie(d)
        | Map::LruHashMap(d)
        | Map::PerCpuArray(d)
        | Map::PerCpuHashMap(d)
        | Map::RingBuf(d)
        | Map::SkStorage(d)
        | Map::SockHash(d)
        | Map::SockMap(d) => d,
        _ => return None,
    })
}

pub(super) fn max_entries(map: &Map) -> Result<u32, MapError> {
    data(map).map_or(Ok(0), |d| d.info().map(|i| i.max_entries()))
}

pub(super) fn descriptor(spec: Spec, map: &Map) -> Result<OwnedFd, LoadError> {
    let data =
        data(map).ok_or_else(|| LoadError::Object(format!("map {} has an unexpected type", spec.name)))?;
    data.fd().as_fd().try_clone_to_owned().map_err(|e| of_map(spec, &e))
}

pub(super) fn mapped<T: aya::Pod>(spec: Spec, map: &Map) -> Result<Mapped<T>, LoadError> {
    let fd = descriptor(spec, map)?;
    let len = max_entries(map).map_err(|e| of_map(spec, &e))?;
    Mapped::new(fd.as_fd(), len).map_err(|e| of_map(spec, &e))
}

pub(super) fn typed<M: TryFrom<Map, Error = MapError>>(spec: Spec, map: Map) -> Result<M, LoadError> {
    M::try_from(map).map_err(|e| of_map(spec, &e))
}

/// A hash with its homes.
pub(super) fn homed<K: aya::Pod + Lodger, V: aya::Pod + PartialEq>(
    (hash, homes): (Spec, Spec),
    take: &mut impl FnMut(Spec) -> Result<Map, LoadError>,
) -> Result<Mutex<Homed<K, V>>, LoadError>
where
    Home<K, V>: aya::Pod,
{
    let homed = Homed::new(typed(hash, take(hash)?)?, mapped(homes, &take(homes)?)?, Instant::now());
    homed.map(Mutex::new).map_err(|e| of_map(hash, &e))
}
