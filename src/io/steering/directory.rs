//! The directory that outlives a director: locks and pins.
//!
//! Under the directory (by default [`DEFAULT_DIRECTORY`]) there are, for an interface `eth0`:
//!
//! - `eth0@NAMESPACE.lock`, locked with flock(2) as long as a director has the interface, holding its process id;
//! - `bpf/`, a bpffs, mounted here where it is none, and then `bpf.mounted` says so;
//! - `bpf/eth0@NAMESPACE/`: `keys` and `networks`, and the link, named by its kind.
//!
//! `NAMESPACE` is the network namespace's number, since every namespace may have an `eth0`, with the same index
//! even. Everything that changes the directory holds a lock on it meanwhile.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{SteeringError, SteeringKind};
use crate::sys::bpf::{self, Link, LinkKind, Map};

/// Where locks and pins are unless said otherwise.
pub const DEFAULT_DIRECTORY: &str = "/run/uvs";

/// Interfaces looked at in one directory.
const MAX_INTERFACES: usize = 4096;
/// Longest name of an interface, in bytes (IFNAMSIZ less the terminator).
const MAX_NAME_BYTES: usize = 15;
/// How long others' changes to the directory are waited for: attempts, and the pause between them.
const LOCK_ATTEMPTS: usize = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

const LOCK_SUFFIX: &str = ".lock";

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

/// Nobody else changes the directory while this lives.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    file: File,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing is not enough while a child that is just being started still has a copy.
        let _ = self.file.unlock();
    }
}

/// No other director has the interface while this lives.
#[derive(Debug)]
pub(super) struct InterfaceLock {
    file: File,
    path: PathBuf,
}

impl Drop for InterfaceLock {
    fn drop(&mut self) {
        // As above.
        let _ = self.file.unlock();
    }
}

impl InterfaceLock {
    /// Takes the lock file away. The directory must be locked: nobody may be opening it.
    pub(super) fn remove(self, _locked: &DirectoryLock) -> Result<(), SteeringError> {
        remove_file(&self.path)
    }
}

/// An interface's name in the directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry(String);

impl Entry {
    /// The entry of an interface in the calling thread's network namespace.
    pub(super) fn of(interface: &str) -> Result<Self, SteeringError> {
        let bad = interface.is_empty()
            || interface.len() > MAX_NAME_BYTES
            || interface.bytes().any(|byte| byte == b'/' || byte == 0);
        if bad {
            return Err(SteeringError::BadInterfaceName(interface.to_owned()));
        }
        let namespace = Path::new("/proc/thread-self/ns/net");
        let number = fs::metadata(namespace).map_err(at(namespace))?.ino();
        // A bpffs takes no name with a dot, which VLAN interfaces have.
        let escaped = interface.replace('%', "%25").replace('.', "%2e");
        Ok(Self(format!("{escaped}@{number}")))
    }

    /// The interface's name.
    pub(super) fn interface(&self) -> String {
        let escaped = self.0.rsplit_once('@').map_or(self.0.as_str(), |(name, _)| name);
        escaped.replace("%2e", ".").replace("%25", "%")
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SteeringError {
    let path = path.to_owned();
    move |source| SteeringError::Directory { path, source }
}

fn remove_file(path: &Path) -> Result<(), SteeringError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<(), SteeringError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn pins(&self) -> PathBuf {
        self.path.join("bpf")
    }

    /// Says that the bpffs is our own doing.
    fn mount_marker(&self) -> PathBuf {
        self.path.join("bpf.mounted")
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Creates the directory where there is none, and keeps others from changing it.
    pub(super) fn lock(&self) -> Result<DirectoryLock, SteeringError> {
        fs::create_dir_all(&self.path).map_err(at(&self.path))?;
        let file = File::open(&self.path).map_err(at(&self.path))?;
        for _ in 0..LOCK_ATTEMPTS {
            match file.try_lock() {
                Ok(()) => return Ok(DirectoryLock { file }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::Error(error)) => return Err(at(&self.path)(error)),
            }
        }
        let busy = io::Error::new(io::ErrorKind::WouldBlock, "another uvs keeps it locked");
        Err(at(&self.path)(busy))
    }

    /// Takes an interface for this process.
    pub(super) fn lock_interface(
        &self,
        entry: &Entry,
        _locked: &DirectoryLock,
    ) -> Result<InterfaceLock, SteeringError> {
        let path = self.path.join(format!("{}{LOCK_SUFFIX}", entry.0));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // At most a few digits; whoever has the lock may not have written them yet.
                let mut text = String::new();
                let _ = file.take(16).read_to_string(&mut text);
                return Err(SteeringError::InUse {
                    interface: entry.interface(),
                    pid: text.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(at(&path))?;
        Ok(InterfaceLock { file, path })
    }

    /// The interface's place in the bpffs, which is mounted where it is not.
    pub(super) fn open_pins(&self, entry: &Entry, _locked: &DirectoryLock) -> Result<Pins, SteeringError> {
        let root = self.pins();
        fs::create_dir_all(&root).map_err(at(&root))?;
        if !bpf::is_bpffs(&root).map_err(at(&root))? {
            let marker = self.mount_marker();
            fs::write(&marker, "").map_err(at(&marker))?;
            if let Err(error) = bpf::mount_bpffs(&root) {
                remove_file(&marker)?;
                remove_directory(&root)?;
                return Err(at(&root)(error));
            }
        }
        let path = root.join(&entry.0);
        fs::create_dir_all(&path).map_err(at(&path))?;
        Ok(Pins { path })
    }

    /// Every interface that has a lock file or pins here, whichever namespace it is in.
    pub(super) fn entries(&self, _locked: &DirectoryLock) -> Result<Vec<Entry>, SteeringError> {
        let mut names = Vec::new();
        for (path, suffix) in [(self.path.clone(), LOCK_SUFFIX), (self.pins(), "")] {
            let listing = match fs::read_dir(&path) {
                Ok(listing) => listing,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(&path)(error)),
            };
            for file in listing.take(MAX_INTERFACES) {
                let name = file.map_err(at(&path))?.file_name();
                let entry = name.to_str().and_then(|name| name.strip_suffix(suffix));
                names.extend(entry.filter(|name| name.contains('@')).map(|name| Entry(name.to_owned())));
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The interface's place in the bpffs, if it has one.
    pub(super) fn existing_pins(&self, entry: &Entry) -> Option<Pins> {
        let root = self.pins();
        let path = root.join(&entry.0);
        (bpf::is_bpffs(&root).unwrap_or(false) && path.is_dir()).then_some(Pins { path })
    }

    /// Unmounts the bpffs where it was mounted by a director and nothing is left in it.
    pub(super) fn clean_up(&self, _locked: &DirectoryLock) -> Result<(), SteeringError> {
        let (root, marker) = (self.pins(), self.mount_marker());
        if !marker.exists() {
            return Ok(());
        }
        if bpf::is_bpffs(&root).unwrap_or(false) {
            // Files in it are the kernel's own, for debugging.
            let mut listing = fs::read_dir(&root).map_err(at(&root))?;
            if listing.any(|file| file.is_ok_and(|file| file.path().is_dir())) {
                return Ok(());
            }
            drop(listing);
            bpf::unmount_bpffs(&root).map_err(at(&root))?;
        }
        remove_directory(&root)?;
        remove_file(&marker)
    }
}

fn pinned(path: &Path) -> Result<Option<Map>, SteeringError> {
    if path.exists() { Ok(Some(Map::open_pinned(path)?)) } else { Ok(None) }
}

/// One interface's pins.
#[derive(Debug)]
pub(super) struct Pins {
    path: PathBuf,
}

impl Pins {
    fn keys_path(&self) -> PathBuf {
        self.path.join("keys")
    }

    fn networks_path(&self) -> PathBuf {
        self.path.join("networks")
    }

    /// Where a map is pinned before it takes another's place.
    fn new_path(path: &Path) -> PathBuf {
        // A bpffs takes no name with a dot.
        let mut name = path.as_os_str().to_owned();
        name.push("-new");
        name.into()
    }

    fn link_path(&self, kind: SteeringKind) -> PathBuf {
        self.path.join(kind.name())
    }

    /// The links of a director before this one. Those that no longer hold the interface of this index (because
    /// it was deleted, and maybe made again) are forgotten.
    pub(super) fn links(&self, interface: u32) -> Result<Vec<(SteeringKind, Link)>, SteeringError> {
        let mut links = Vec::new();
        for kind in SteeringKind::ALL {
            let path = self.link_path(kind);
            if !path.exists() {
                continue;
            }
            let link = Link::open_pinned(&path)?;
            let info = link.info()?;
            let expected = if kind == SteeringKind::Guard { LinkKind::Tcx } else { LinkKind::Xdp };
            if info.interface == interface && info.kind == expected {
                links.push((kind, link));
            } else {
                remove_file(&path)?;
            }
        }
        Ok(links)
    }

    /// The keys of addresses of a director before this one.
    pub(super) fn keys(&self) -> Result<Option<Map>, SteeringError> {
        pinned(&self.keys_path())
    }

    /// The keys of networks of a director before this one.
    pub(super) fn networks(&self) -> Result<Option<Map>, SteeringError> {
        pinned(&self.networks_path())
    }

    /// Pins the keys, in the place of those before. There are pinned keys at every moment.
    pub(super) fn put_keys(&self, keys: &Map, networks: &Map) -> Result<(), SteeringError> {
        for (map, path) in [(networks, self.networks_path()), (keys, self.keys_path())] {
            let new = Self::new_path(&path);
            remove_file(&new)?;
            map.pin(&new)?;
            fs::rename(&new, &path).map_err(at(&path))?;
        }
        Ok(())
    }

    pub(super) fn put_link(&self, kind: SteeringKind, link: &Link) -> Result<(), SteeringError> {
        Ok(link.pin(&self.link_path(kind))?)
    }

    /// Detaches a link, and forgets it.
    pub(super) fn remove_link(&self, kind: SteeringKind, link: &Link) -> Result<(), SteeringError> {
        link.detach()?;
        self.forget_link(kind)
    }

    /// Forgets a link that is detached.
    pub(super) fn forget_link(&self, kind: SteeringKind) -> Result<(), SteeringError> {
        remove_file(&self.link_path(kind))
    }

    /// Detaches every link that is pinned, and forgets everything.
    pub(super) fn detach_all(&self) -> Result<(), SteeringError> {
        for kind in SteeringKind::ALL {
            let path = self.link_path(kind);
            if path.exists() {
                self.remove_link(kind, &Link::open_pinned(&path)?)?;
            }
        }
        self.remove()
    }

    pub(super) fn has_links(&self) -> bool {
        SteeringKind::ALL.into_iter().any(|kind| self.link_path(kind).exists())
    }

    /// Forgets the keys, and the interface.
    pub(super) fn remove(&self) -> Result<(), SteeringError> {
        for path in [self.keys_path(), self.networks_path()] {
            remove_file(&Self::new_path(&path))?;
            remove_file(&path)?;
        }
        remove_directory(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_tell_the_interface_and_fit_a_bpffs() {
        for name in ["eth0", "eth0.100", "a%2eb", "x@y"] {
            let entry = Entry::of(name).unwrap();
            assert!(!entry.0.contains('.'), "{entry:?}");
            assert_eq!(entry.interface(), name);
        }
        for name in ["", "a/b", "sixteen-letters-", "nul\0"] {
            assert!(matches!(Entry::of(name), Err(SteeringError::BadInterfaceName(_))), "{name}");
        }
    }
}
