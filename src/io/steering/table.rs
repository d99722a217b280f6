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

    /// Adds the entries of these keys to what the map holds.
    pub(super) fn extend(&mut self, keys: &BTreeSet<SteeringKey>) -> Result<(), SteeringError> {
        let wanted = key::entries(keys);
        let together = self.entries.union(&wanted).count();
        if together > MAP_CAPACITY as usize {
            return Err(SteeringError::TooManyKeys { entries: together });
        }
        Ok(self.add(&wanted)?)
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::types::Protocol;

    fn is_root() -> bool {
        if rustix::process::geteuid().is_root() {
            return true;
        }
        assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none(), "UVS_REQUIRE_ROOT is set");
        eprintln!("SKIPPED: needs root to make BPF maps");
        false
    }

    /// `count` keys, of different addresses.
    fn keys(network: u32, count: u32) -> BTreeSet<SteeringKey> {
        (0..count)
            .map(|n| SteeringKey::Transport {
                address: IpAddr::V4(Ipv4Addr::from(network + n)),
                protocol: Protocol::Tcp,
                port: 80,
            })
            .collect()
    }

    fn in_map(map: &Map) -> BTreeSet<KeyBytes> {
        map.keys().unwrap().into_iter().map(|key| KeyBytes::try_from(key).unwrap()).collect()
    }

    const FULL: u32 = MAX_STEERING_ENTRIES as u32 / 2;

    #[test]
    fn full_sets_are_replaced_and_larger_ones_refused() {
        if !is_root() {
            return;
        }
        let mut table = KeyTable::create().unwrap();
        table.replace(&keys(0x0a00_0000, FULL)).unwrap();
        let second = keys(0x0b00_0000, FULL);
        table.replace(&second).unwrap();
        let error = table.replace(&keys(0x0c00_0000, FULL + 1)).unwrap_err();
        assert!(
            matches!(error, SteeringError::TooManyKeys { entries } if entries == MAX_STEERING_ENTRIES + 2)
        );
        assert_eq!(in_map(table.map()), key::entries(&second));
        table.replace(&BTreeSet::new()).unwrap();
        assert!(in_map(table.map()).is_empty());
    }

    #[test]
    fn adopted_keys_stay_until_the_next_set() {
        if !is_root() {
            return;
        }
        let (mine, theirs) = (keys(0x0a00_0000, 3), keys(0x0a00_0002, 3));
        let mut old = KeyTable::create().unwrap();
        old.replace(&theirs).unwrap();
        let mut table = KeyTable::create().unwrap();
        table.replace(&mine).unwrap();
        assert!(table.merge(old.map()).unwrap());
        let both: BTreeSet<SteeringKey> = mine.union(&theirs).copied().collect();
        assert_eq!(in_map(table.map()), key::entries(&both));
        table.replace(&mine).unwrap();
        assert_eq!(in_map(table.map()), key::entries(&mine));
    }

    #[test]
    fn adopting_a_full_map_leaves_room_for_replacing_it() {
        if !is_root() {
            return;
        }
        let mut table = KeyTable::create().unwrap();
        table.replace(&keys(0x0a00_0000, FULL)).unwrap();
        let mut old = KeyTable::create().unwrap();
        old.replace(&keys(0x0b00_0000, FULL)).unwrap();
        assert!(table.merge(old.map()).unwrap());
        old.replace(&keys(0x0c00_0000, 1)).unwrap();
        let error = table.merge(old.map()).unwrap_err();
        assert!(matches!(error, SteeringError::TooManyKeys { .. }));
        let new = keys(0x0d00_0000, FULL);
        table.replace(&new).unwrap();
        assert_eq!(in_map(table.map()), key::entries(&new));
    }

    #[test]
    fn keys_of_another_layout_are_not_adopted() {
        if !is_root() {
            return;
        }
        let other = Map::create(MapKind::Hash, "uvs_keys_0", KEY_BYTES as u32, 4, MAP_CAPACITY).unwrap();
        other.insert(&[1; KEY_BYTES], &PRESENT).unwrap();
        let mut table = KeyTable::create().unwrap();
        assert!(!table.merge(&other).unwrap());
        assert!(in_map(table.map()).is_empty());
        assert_eq!(other.get(&[1; KEY_BYTES]).unwrap(), Some(PRESENT.to_vec()));
        assert_eq!(other.get(&[2; KEY_BYTES]).unwrap(), None);
    }
}
