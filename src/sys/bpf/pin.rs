//! Pins: names for BPF objects in a bpffs, which keep them alive without a process.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{BpfError, Command, bpf, bpf_descriptor, pointer};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPFFS_MAGIC: u32 = 0xcafe_4a11;

#[repr(C)]
struct PinAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Gives a BPF object a name in a bpffs.
pub(super) fn pin(descriptor: BorrowedFd<'_>, path: &Path) -> Result<(), BpfError> {
    const ACTION: &str = "pin a BPF object";
    let path = c_path(path).map_err(|error| BpfError::new(ACTION, error))?;
    let mut attributes = PinAttributes {
        path: pointer(path.as_bytes_with_nul()),
        descriptor: descriptor.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the layout is BPF_OBJ_PIN's; the path ends with a zero and outlives the call.
    unsafe { bpf(Command::ObjectPin, &mut attributes) }.map_err(|error| BpfError::new(ACTION, error))?;
    Ok(())
}

/// The BPF object that is pinned at `path`.
pub(super) fn get(path: &Path) -> Result<OwnedFd, BpfError> {
    const ACTION: &str = "open a pinned BPF object";
    let path = c_path(path).map_err(|error| BpfError::new(ACTION, error))?;
    let mut attributes = PinAttributes { path: pointer(path.as_bytes_with_nul()), descriptor: 0, flags: 0 };
    // SAFETY: the layout is BPF_OBJ_GET's; the path ends with a zero and outlives the call, which returns a new
    // descriptor.
    unsafe { bpf_descriptor(Command::ObjectGet, &mut attributes) }
        .map_err(|error| BpfError::new(ACTION, error))
}

/// Makes sure that `descriptor` is a BPF object of this kind, `bpf-map` or `bpf-link`, as the kernel names it in
/// /proc (older ones with an underscore).
pub(super) fn expect_kind(
    descriptor: BorrowedFd<'_>,
    kind: &str,
    action: &'static str,
) -> Result<(), BpfError> {
    let target = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
        .map_err(|error| BpfError::new(action, error))?;
    if target.to_string_lossy().replace('_', "-").contains(kind) {
        Ok(())
    } else {
        let what = format!("not a {kind} but {}", target.display());
        Err(BpfError::new(action, io::Error::new(io::ErrorKind::InvalidData, what)))
    }
}

/// Whether `path` lies in a bpffs.
///
/// # Errors
/// The kernel's own, as for a path that does not exist.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    // The field's type and sign depend on the architecture; the magic number is its lower 32 bits.
    Ok(rustix::fs::statfs(path)?.f_type as u32 == BPFFS_MAGIC)
}

/// Mounts a new bpffs on the directory `path`, for the owner's eyes only.
///
/// # Errors
/// The kernel's own: no privileges (needs CAP_SYS_ADMIN), no such directory.
pub fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all four strings end with a zero and outlive the call. The standard library has no mount.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            flags,
            c"mode=0700".as_ptr().cast::<libc::c_void>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a bpffs off `path`. Everything pinned in it, and held by nothing else, is gone then.
///
/// # Errors
/// Invalid input where `path` lies in no bpffs; else the kernel's own.
pub fn unmount_bpffs(path: &Path) -> io::Result<()> {
    if !is_bpffs(path)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let path = c_path(path)?;
    // SAFETY: the path ends with a zero and outlives the call. The standard library has no umount.
    let result = unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::super::{Link, Map, MapKind};
    use super::*;

    #[test]
    fn pins_keep_maps_and_tell_what_they_are() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("UVS_REQUIRE_ROOT").is_none(), "UVS_REQUIRE_ROOT is set");
            eprintln!("SKIPPED: needs root to mount a bpffs");
            return;
        }
        let directory = std::env::temp_dir().join(format!("uvs-pin-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        assert!(!is_bpffs(&directory).unwrap());
        assert!(unmount_bpffs(&directory).is_err());
        mount_bpffs(&directory).unwrap();
        assert!(is_bpffs(&directory).unwrap());

        let path = directory.join("map");
        let map = Map::create(MapKind::Array, "pinned", 4, 8, 2).unwrap();
        map.pin(&path).unwrap();
        map.insert(&1_u32.to_ne_bytes(), &7_u64.to_ne_bytes()).unwrap();
        let info = map.info().unwrap();
        drop(map);
        let again = Map::open_pinned(&path).unwrap();
        assert_eq!(again.info().unwrap(), info);
        assert_eq!((info.kind, info.key_size, info.value_size, info.capacity), (MapKind::Array, 4, 8, 2));
        assert_eq!(again.get(&1_u32.to_ne_bytes()).unwrap(), Some(7_u64.to_ne_bytes().to_vec()));
        assert_eq!(again.keys().unwrap(), [0_u32.to_ne_bytes(), 1_u32.to_ne_bytes()]);
        let error = Link::open_pinned(&path).unwrap_err();
        assert!(error.to_string().contains("not a bpf-link but anon_inode:bpf"), "{error}");

        unmount_bpffs(&directory).unwrap();
        fs::remove_dir(&directory).unwrap();
    }
}
