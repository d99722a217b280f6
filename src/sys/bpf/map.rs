//! Maps: tables shared by programs and the director.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{BpfError, Command, bpf, bpf_descriptor, object_name, pin, pointer, pointer_mut};

/// What a map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    /// Keys of any bytes. Takes memory for entries as they come.
    Hash = 1,
    /// Keys are indices, 0 upwards; every entry is always there.
    Array = 2,
    /// Keys are a number of bits and so many bits, or more; the longest that the bits of what is looked up begin with is
    /// found.
    Prefixes = 11,
    /// AF_XDP sockets by index.
    XdpSockets = 17,
}

impl MapKind {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Hash, Self::Array, Self::Prefixes, Self::XdpSockets]
            .into_iter()
            .find(|&kind| kind as u32 == number)
    }
}

/// What a map looks like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapInfo {
    /// What it is.
    pub kind: MapKind,
    /// The kernel's number for it, the same through every descriptor.
    pub id: u32,
    /// Bytes in a key.
    pub key_size: u32,
    /// Bytes in a value.
    pub value_size: u32,
    /// Entries it holds at most.
    pub capacity: u32,
    /// Its name.
    pub name: String,
}

/// A map, kept alive by this descriptor (and by programs that use it, and by pins).
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    key_size: usize,
    value_size: usize,
    capacity: u32,
}

/// Entries are allocated as they come (`BPF_F_NO_PREALLOC`): of hash maps by choice, of maps of prefixes always.
const NO_PREALLOCATION: u32 = 1;

#[repr(C)]
struct CreateAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    capacity: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct ElementAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

#[repr(C)]
pub(super) struct InfoAttributes {
    pub(super) descriptor: i32,
    pub(super) length: u32,
    pub(super) info: u64,
}

#[repr(C)]
#[derive(Default)]
struct RawInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    capacity: u32,
    flags: u32,
    name: [u8; 16],
}

impl Map {
    /// A new, empty map of at most `capacity` entries; sizes in bytes. The name may hold letters, digits, `_`
    /// and `.`, and is cut to 15.
    ///
    /// # Errors
    /// The kernel's own: no privileges, sizes that the kind does not take.
    pub fn create(
        kind: MapKind,
        name: &str,
        key_size: u32,
        value_size: u32,
        capacity: u32,
    ) -> Result<Self, BpfError> {
        let mut attributes = CreateAttributes {
            kind: kind as u32,
            key_size,
            value_size,
            capacity,
            flags: if matches!(kind, MapKind::Hash | MapKind::Prefixes) { NO_PREALLOCATION } else { 0 },
            inner_map: 0,
            numa_node: 0,
            name: object_name(name),
        };
        // SAFETY: the layout is BPF_MAP_CREATE's and holds no pointers; it returns a new descriptor.
        let descriptor = unsafe { bpf_descriptor(Command::MapCreate, &mut attributes) }
            .map_err(|error| BpfError::new("create a BPF map", error))?;
        Ok(Self { descriptor, key_size: key_size as usize, value_size: value_size as usize, capacity })
    }

    /// The map pinned at `path`.
    ///
    /// # Errors
    /// The kernel's own; invalid data where the pin is no map, or one of a kind not in [`MapKind`].
    pub fn open_pinned(path: &Path) -> Result<Self, BpfError> {
        let descriptor = pin::get(path)?;
        let info = info(descriptor.as_fd())?;
        Ok(Self {
            descriptor,
            key_size: info.key_size as usize,
            value_size: info.value_size as usize,
            capacity: info.capacity,
        })
    }

    /// Gives the map a name at `path` in a bpffs, which keeps it alive.
    ///
    /// # Errors
    /// The kernel's own: the name is taken, or `path` is in no bpffs.
    pub fn pin(&self, path: &Path) -> Result<(), BpfError> {
        pin::pin(self.descriptor.as_fd(), path)
    }

    /// What the map looks like.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn info(&self) -> Result<MapInfo, BpfError> {
        info(self.descriptor.as_fd())
    }

    /// Adds or replaces an entry.
    ///
    /// # Errors
    /// The kernel's own: the map is full (E2BIG), the key is out of an array's range.
    ///
    /// # Panics
    /// Where key or value has another size than the map's: an error in the program.
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        assert_eq!((key.len(), value.len()), (self.key_size, self.value_size), "sizes of key and value");
        let mut attributes = self.element(key, pointer(value));
        // SAFETY: the layout is BPF_MAP_UPDATE_ELEM's; the kernel reads key and value, which have the sizes that
        // it knows for this map (checked above) and outlive the call.
        unsafe { bpf(Command::MapUpdate, &mut attributes) }
            .map_err(|error| BpfError::new("write to a BPF map", error))?;
        Ok(())
    }

    /// Removes an entry; says whether it was there.
    ///
    /// # Errors
    /// The kernel's own.
    ///
    /// # Panics
    /// Where the key has another size than the map's: an error in the program.
    pub fn remove(&self, key: &[u8]) -> Result<bool, BpfError> {
        assert_eq!(key.len(), self.key_size, "size of the key");
        let mut attributes = self.element(key, 0);
        // SAFETY: the layout is BPF_MAP_DELETE_ELEM's; the kernel reads the key, whose size was checked.
        found(unsafe { bpf(Command::MapDelete, &mut attributes) }, "delete from a BPF map")
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// The kernel's own.
    ///
    /// # Panics
    /// Where the key has another size than the map's: an error in the program.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BpfError> {
        assert_eq!(key.len(), self.key_size, "size of the key");
        let mut value = vec![0; self.value_size];
        let mut attributes = self.element(key, pointer_mut(value.as_mut_slice()));
        // SAFETY: the layout is BPF_MAP_LOOKUP_ELEM's; the kernel reads the key, whose size was checked, and writes
        // value_size bytes, as many as there are: no kind in `MapKind` has values per processor.
        let result = unsafe { bpf(Command::MapLookup, &mut attributes) };
        Ok(found(result, "read a BPF map")?.then_some(value))
    }

    /// All keys, in no order. Entries that come or go meanwhile may be missed or told twice.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, BpfError> {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        // A removal behind the walk's back restarts it: the bound is what ends it for certain.
        let bound = (self.capacity as usize).saturating_mul(2);
        while keys.len() < bound {
            let mut next = vec![0; self.key_size];
            let mut attributes = self.element(&[], pointer_mut(next.as_mut_slice()));
            attributes.key = keys.last().map_or(0, |key| pointer(key.as_slice()));
            // SAFETY: the layout is BPF_MAP_GET_NEXT_KEY's; the kernel reads the previous key (null asks for the
            // first) and writes the next; both have the map's key size and outlive the call.
            let result = unsafe { bpf(Command::MapNextKey, &mut attributes) };
            if !found(result, "walk a BPF map")? {
                break;
            }
            keys.push(next);
        }
        Ok(keys)
    }

    fn element(&self, key: &[u8], value_or_next_key: u64) -> ElementAttributes {
        ElementAttributes {
            map: self.descriptor.as_raw_fd() as u32,
            padding: 0,
            key: pointer(key),
            value_or_next_key,
            flags: 0,
        }
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn found(result: io::Result<libc::c_long>, action: &'static str) -> Result<bool, BpfError> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(BpfError::new(action, error)),
    }
}

fn info(descriptor: BorrowedFd<'_>) -> Result<MapInfo, BpfError> {
    const ACTION: &str = "ask about a BPF map";
    pin::expect_kind(descriptor, "bpf-map", ACTION)?;
    let mut raw = RawInfo::default();
    let mut attributes = InfoAttributes {
        descriptor: descriptor.as_raw_fd(),
        length: size_of::<RawInfo>() as u32,
        info: pointer_mut(&mut raw),
    };
    // SAFETY: the layout is BPF_OBJ_GET_INFO_BY_FD's; the kernel writes at most `length` bytes to `raw`, whose
    // fields take any bits.
    unsafe { bpf(Command::ObjectInfo, &mut attributes) }.map_err(|error| BpfError::new(ACTION, error))?;
    let kind = MapKind::from_number(raw.kind)
        .ok_or_else(|| BpfError::new(ACTION, io::Error::other("a map of a kind that is not used here")))?;
    let name_length = raw.name.iter().position(|&byte| byte == 0).unwrap_or(raw.name.len());
    Ok(MapInfo {
        kind,
        id: raw.id,
        key_size: raw.key_size,
        value_size: raw.value_size,
        capacity: raw.capacity,
        name: String::from_utf8_lossy(&raw.name[..name_length]).into_owned(),
    })
}
