//! The maps of keys, and what is in them.

use std::collections::BTreeSet;

use super::SteeringError;
use super::key::{self, KEY_BYTES, KeyBytes, NETWORK_BYTES, NetworkBytes, SteeringKey};
use crate::sys::bpf::{BpfError, Map, MapInfo, MapKind};

/// Entries that the keys of addresses may come to: one for each key, and one for each address.
pub const MAX_STEERING_ENTRIES: usize = 65_536;
/// Entries that the keys of networks may come to: one for each key, and one for each network.
pub const MAX_STEERING_NETWORKS: usize = 16_384;

/// The maps' names; their numbers change with the layout of the keys, so that what another version of the program
/// left behind is not misread.
const MAP_NAME: &str = "uvs_keys_1";
const NETWORKS_NAME: &str = "uvs_nets_1";

/// The name of the array that says whether there are keys of sources.
const SOURCES_NAME: &str = "uvs_sources";

/// Only a key's presence counts.
const PRESENT: [u8; 4] = 1_u32.to_ne_bytes();

/// The keys that the programs look up, shared by all interfaces: two maps, of addresses and of networks.
#[derive(Debug)]
pub(super) struct KeyTable {
    addresses: Table<KEY_BYTES>,
    networks: Table<NETWORK_BYTES>,
    /// One word, which the programs read before they look any source up: it is 0 as long as no key is of a source.
    sources: Map,
}

impl KeyTable {
    pub(super) fn create() -> Result<Self, BpfError> {
        Ok(Self {
            addresses: Table::create(MapKind::Hash, MAP_NAME, MAX_STEERING_ENTRIES)?,
            networks: Table::create(MapKind::Prefixes, NETWORKS_NAME, MAX_STEERING_NETWORKS)?,
            sources: Map::create(MapKind::Array, SOURCES_NAME, 4, 4, 1)?,
        })
    }

    /// The map of addresses.
    pub(super) fn map(&self) -> &Map {
        &self.addresses.map
    }

    /// The map of networks.
    pub(super) fn networks(&self) -> &Map {
        &self.networks.map
    }

    /// The array of one word that says whether there are keys of sources.
    pub(super) fn sources(&self) -> &Map {
        &self.sources
    }

    /// Tells the programs whether to look sources up.
    fn tell_sources(&self) -> Result<(), BpfError> {
        let any = self.addresses.entries.iter().any(key::is_source);
        self.sources.insert(&0_u32.to_ne_bytes(), &u32::from(any).to_ne_bytes())
    }

    /// Makes the maps hold exactly the entries of these keys; new ones are there before old ones go.
    pub(super) fn replace(&mut self, keys: &BTreeSet<SteeringKey>) -> Result<(), SteeringError> {
        let (addresses, networks) = (key::entries(keys), key::network_entries(keys));
        self.addresses.check(&addresses)?;
        self.networks.check(&networks)?;
        let result = self.exchange(&addresses, &networks);
        result.and(self.tell_sources().map_err(SteeringError::from))
    }

    fn exchange(
        &mut self,
        addresses: &BTreeSet<KeyBytes>,
        networks: &BTreeSet<NetworkBytes>,
    ) -> Result<(), SteeringError> {
        self.addresses.prepare(addresses)?;
        self.networks.prepare(networks)?;
        // Those that are new count before old ones go.
        self.tell_sources()?;
        self.addresses.remove_all_but(addresses)?;
        self.networks.remove_all_but(networks)
    }

    /// Adds the entries of these keys to what the maps hold.
    pub(super) fn extend(&mut self, keys: &BTreeSet<SteeringKey>) -> Result<(), SteeringError> {
        let (addresses, networks) = (key::entries(keys), key::network_entries(keys));
        self.addresses.check_together(&addresses)?;
        self.networks.check_together(&networks)?;
        let result = self.addresses.add(&addresses).and_then(|()| self.networks.add(&networks));
        Ok(result.and(self.tell_sources())?)
    }

    /// Adds what is in `other`, the map of addresses of a director before this one.
    /// Says false and adds nothing where its layout is another.
    pub(super) fn merge(&mut self, other: &Map) -> Result<bool, SteeringError> {
        let result = self.addresses.merge(other);
        self.tell_sources()?;
        result
    }

    /// The same for the map of networks.
    pub(super) fn merge_networks(&mut self, other: &Map) -> Result<bool, SteeringError> {
        self.networks.merge(other)
    }
}

/// One map.
#[derive(Debug)]
struct Table<const BYTES: usize> {
    map: Map,
    /// What it holds.
    entries: BTreeSet<[u8; BYTES]>,
    /// Entries that a set of keys may come to.
    most: usize,
}

impl<const BYTES: usize> Table<BYTES> {
    fn create(kind: MapKind, name: &str, most: usize) -> Result<Self, BpfError> {
        let capacity = Self::capacity(most);
        let map = Map::create(kind, name, BYTES as u32, PRESENT.len() as u32, capacity as u32)?;
        Ok(Self { map, entries: BTreeSet::new(), most })
    }

    /// The map has room for two full sets, since new keys are added before old ones are removed.
    const fn capacity(most: usize) -> usize {
        2 * most
    }

    fn check(&self, wanted: &BTreeSet<[u8; BYTES]>) -> Result<(), SteeringError> {
        let (entries, most) = (wanted.len(), self.most);
        if entries > most { Err(SteeringError::TooManyKeys { entries, most }) } else { Ok(()) }
    }

    fn check_together(&self, more: &BTreeSet<[u8; BYTES]>) -> Result<(), SteeringError> {
        let (entries, most) = (self.entries.union(more).count(), Self::capacity(self.most));
        if entries > most { Err(SteeringError::TooManyKeys { entries, most }) } else { Ok(()) }
    }

    /// Adds what is missing of a set that is to be all there is.
    fn prepare(&mut self, wanted: &BTreeSet<[u8; BYTES]>) -> Result<(), SteeringError> {
        // What was adopted may fill the map by itself: then there is no room for adding first.
        if self.check_together(wanted).is_err() {
            self.remove_all_but(wanted)?;
        }
        Ok(self.add(wanted)?)
    }

    fn merge(&mut self, other: &Map) -> Result<bool, SteeringError> {
        let (mine, theirs) = (self.map.info()?, other.info()?);
        let layout = |info: &MapInfo| (info.kind, info.key_size, info.value_size, info.name.clone());
        if layout(&mine) != layout(&theirs) {
            return Ok(false);
        }
        if mine.id == theirs.id {
            return Ok(true);
        }
        let keys = other.keys()?;
        let entries: BTreeSet<[u8; BYTES]> =
            keys.into_iter().filter_map(|key| <[u8; BYTES]>::try_from(key).ok()).collect();
        self.check_together(&entries)?;
        self.add(&entries)?;
        Ok(true)
    }

    /// `entries` says at every moment what the map holds, also when the kernel refuses in the middle.
    fn add(&mut self, wanted: &BTreeSet<[u8; BYTES]>) -> Result<(), BpfError> {
        let missing: Vec<[u8; BYTES]> = wanted.difference(&self.entries).copied().collect();
        for entry in missing {
            self.map.insert(&entry, &PRESENT)?;
            self.entries.insert(entry);
        }
        Ok(())
    }

    fn remove_all_but(&mut self, wanted: &BTreeSet<[u8; BYTES]>) -> Result<(), SteeringError> {
        let surplus: Vec<[u8; BYTES]> = self.entries.difference(wanted).copied().collect();
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
    use crate::io::steering::key::KeyBytes;
    use crate::types::{Prefix, Protocol};

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
            matches!(error, SteeringError::TooManyKeys { entries, .. } if entries == MAX_STEERING_ENTRIES + 2)
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
        let other = Map::create(MapKind::Hash, "uvs_keys_0", KEY_BYTES as u32, 4, 100).unwrap();
        other.insert(&[1; KEY_BYTES], &PRESENT).unwrap();
        let mut table = KeyTable::create().unwrap();
        assert!(!table.merge(&other).unwrap());
        assert!(in_map(table.map()).is_empty());
        assert_eq!(other.get(&[1; KEY_BYTES]).unwrap(), Some(PRESENT.to_vec()));
        assert_eq!(other.get(&[2; KEY_BYTES]).unwrap(), None);
    }

    #[test]
    fn networks_are_replaced_and_adopted_like_addresses() {
        if !is_root() {
            return;
        }
        let network =
            |text: &str, protocol| SteeringKey::Network { prefix: text.parse::<Prefix>().unwrap(), protocol };
        let first = BTreeSet::from([
            network("10.1.2.3/8", Protocol::Tcp),
            network("0.0.0.0/0", Protocol::Udp),
            network("fd88::/64", Protocol::Tcp),
        ]);
        let in_networks = |map: &Map| -> BTreeSet<key::NetworkBytes> {
            map.keys().unwrap().into_iter().map(|key| key::NetworkBytes::try_from(key).unwrap()).collect()
        };
        let mut old = KeyTable::create().unwrap();
        old.replace(&first).unwrap();
        assert_eq!(in_networks(old.networks()), key::network_entries(&first));
        assert_eq!(in_networks(old.networks()).len(), 6);
        assert!(in_map(old.map()).is_empty());
        let second = BTreeSet::from([network("10.0.0.0/24", Protocol::Tcp)]);
        let mut table = KeyTable::create().unwrap();
        table.replace(&second).unwrap();
        assert!(table.merge_networks(old.networks()).unwrap());
        let both: BTreeSet<SteeringKey> = first.union(&second).copied().collect();
        assert_eq!(in_networks(table.networks()), key::network_entries(&both));
        assert!(!table.merge_networks(old.map()).unwrap(), "addresses are no networks");
        table.replace(&second).unwrap();
        assert_eq!(in_networks(table.networks()), key::network_entries(&second));
        let many = (0..=MAX_STEERING_NETWORKS as u32 / 2).map(|n| SteeringKey::Network {
            prefix: Prefix::new(IpAddr::V4(Ipv4Addr::from(n << 8)), 24),
            protocol: Protocol::Tcp,
        });
        let error = table.replace(&many.collect()).unwrap_err();
        assert!(matches!(error, SteeringError::TooManyKeys { most: MAX_STEERING_NETWORKS, .. }), "{error}");
        assert_eq!(in_networks(table.networks()), key::network_entries(&second), "nothing has changed");
    }
}
