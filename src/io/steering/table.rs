//! The map of keys, and what is in it.

use std::collections::BTreeSet;

use super::SteeringError;
use super::key::{self, KEY_BYTES, KeyBytes, SteeringKey};
use crate::sys::bpf::{BpfError, Map, MapKind};

/// Entries that the keys may come to: one for each key, and one for each address.
pub const MAX_STEERING_ENTRIES: usize = 65_536;

/// The map has room for two full sets, since new keys are added before old ones are removed.
const MAP_CAPACITY: u32 = 2 * MAX_STEERING_ENTRIES as u32;

/// The map's name; its number changes with the layout of the keys, so that what another version of the program
/// left behind is not misread.
const MAP_NAME: &str = "uvs_keys_1";

/// Only a key's presence counts.
const PRESENT: [u8; 4] = 1_u32.to_ne_bytes();

/// The keys that the programs look up, shared by all interfaces.
#[derive(Debug)]
pub(super) struct KeyTable {
    map: Map,
    entries: BTreeSet<KeyBytes>,
}

impl KeyTable {
    pub(super) fn create() -> Result<Self, BpfError> {
        let map = Map::create(MapKind::Hash, MAP_NAME, KEY_BYTES as u32, PRESENT.len() as u32, MAP_CAPACITY)?;
        Ok(Self { map, entries: BTreeSet::new() })
    }

    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    /// Makes the map hold exactly the entries of these keys.
    pub(super) fn replace(&mut self, keys: &BTreeSet<SteeringKey>) -> Result<(), SteeringError> {
        let wanted = key::entries(keys);
        if wanted.len() > MAX_STEERING_ENTRIES {
            return Err(SteeringError::TooManyKeys { entries: wanted.len() });
        }
        // What was adopted may fill the map by itself: then there is no room for adding first.
        if self.entries.union(&wanted).count() > MAP_CAPACITY as usize {
            self.remove_all_but(&wanted)?;
        }
        self.add(&wanted)?;
        self.remove_all_but(&wanted)
    }

    /// Adds what is in `other`, a map of a director before this one.
    /// Says false and adds nothing where its layout is another.
    pub(super) fn merge(&mut self, other: &Map) -> Result<bool, SteeringError> {
        let (mine, theirs) = (self.map.info()?, other.info()?);
        let layout =
            |info: &crate::sys::bpf::MapInfo| (info.kind, info.key_size, info.value_size, info.name.clone());
        if layout(&mine) != layout(&theirs) {
            return Ok(false);
        }
        if mine.id == theirs.id {
            return Ok(true);
        }
        let keys = other.keys()?;
        let entries: BTreeSet<KeyBytes> =
            keys.into_iter().filter_map(|key| KeyBytes::try_from(key).ok()).collect();
        let together = self.entries.union(&entries).count();
        if together > MAP_CAPACITY as usize {
            return Err(SteeringError::TooManyKeys { entries: together });
        }
        self.add(&entries)?;
        Ok(true)
    }

    /// `entries` says at every moment what the map holds, also when the kernel refuses in the middle.
    fn add(&mut self, wanted: &BTreeSet<KeyBytes>) -> Result<(), BpfError> {
        let missing: Vec<KeyBytes> = wanted.difference(&self.entries).copied().collect();
        for entry in missing {
            self.map.insert(&entry, &PRESENT)?;
            self.entries.insert(entry);
        }
        Ok(())
    }

    fn remove_all_but(&mut self, wanted: &BTreeSet<KeyBytes>) -> Result<(), SteeringError> {
        let surplus: Vec<KeyBytes> = self.entries.difference(wanted).copied().collect();
        for entry in surplus {
            self.map.remove(&entry)?;
            self.entries.remove(&entry);
        }
        Ok(())
    }
}
