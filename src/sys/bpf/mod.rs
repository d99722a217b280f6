//! bpf(2): maps, programs, links and pins, and an assembler for the programs.
//!
//! Only what the director needs, straight over the system call (no libbpf). Every object is an [`OwnedFd`]: it
//! lives as long as somebody holds it, so what a director made is gone when it dies, unless it is pinned in a
//! bpffs. Numbers and layouts are those of the kernel's `include/uapi/linux/bpf.h`.

mod asm;
mod link;
mod map;
mod pin;
mod program;

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

pub use asm::{
    Assembler, AssemblyError, Code, Condition, Instruction, Label, MAX_INSTRUCTIONS, Operand, Operation,
    Register, Size,
};
pub use link::{AttachPoint, Link, LinkInfo, LinkKind};
pub use map::{Map, MapInfo, MapKind};
pub use pin::{is_bpffs, mount_bpffs, unmount_bpffs};
pub use program::{Program, ProgramKind, TestRun};

/// What went wrong with a BPF object.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The process lacks the privileges.
    #[error("cannot {action}: not permitted; run as root, or with CAP_BPF and CAP_NET_ADMIN")]
    NotPermitted {
        /// What was attempted.
        action: &'static str,
    },
    /// The kernel refused to load a program.
    #[error("the kernel refused the BPF program '{program}': {source}; its verifier said:\n{log}")]
    Refused {
        /// The program's name.
        program: &'static str,
        /// The kernel's error.
        source: io::Error,
        /// The verifier's explanation, its end where it is long.
        log: String,
    },
    /// Anything else the kernel said.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A program does not assemble.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
}

impl BpfError {
    fn new(action: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted { action },
            _ => Self::System { action, source },
        }
    }

    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NotPermitted { .. } => Some(libc::EPERM),
            Self::Refused { source, .. } | Self::System { source, .. } => source.raw_os_error(),
            Self::Assembly(_) => None,
        }
    }
}

/// Commands of bpf(2), `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramTestRun = 10,
    ObjectInfo = 15,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// The system call; its result is 0 or a descriptor.
///
/// # Safety
/// `T` is the `repr(C)` layout, without padding, that the kernel documents for `command`, and every pointer in
/// it is valid for what the command reads or writes through it.
unsafe fn bpf<T>(command: Command, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are live for the call and their size is told; the rest is the caller's promise.
    // Neither the standard library nor rustix has bpf(2).
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same, for commands that return a new descriptor.
///
/// # Safety
/// As [`bpf`]; and `command` returns a descriptor that the caller owns.
unsafe fn bpf_descriptor<T>(command: Command, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { bpf(command, attributes)? };
    let descriptor = i32::try_from(descriptor).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A name as the kernel keeps it: at most 15 bytes, then zeros.
fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

/// An address for the kernel.
fn pointer<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<()>() as u64
}

/// An address for the kernel to write to.
fn pointer_mut<T: ?Sized>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).cast::<()>() as u64
}
