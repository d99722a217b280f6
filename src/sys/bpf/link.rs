//! Links: programs attached to interfaces, until the link's last descriptor and pin are gone.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::map::InfoAttributes;
use super::{BpfError, Command, Program, bpf, bpf_descriptor, pin, pointer_mut};

/// Where on an interface a program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachPoint {
    /// XDP in the driver.
    XdpNative,
    /// XDP in the network stack, for drivers without.
    XdpGeneric,
    /// TCX ingress: after packet sockets, before the network stack, and before any other TCX program there is:
    /// one that accepts a frame would hide it from those behind.
    TcxIngress,
}

impl AttachPoint {
    /// `enum bpf_attach_type`; and the flags: XDP's of `linux/if_link.h`, TCX's `BPF_F_BEFORE`.
    const fn type_and_flags(self) -> (u32, u32) {
        match self {
            Self::XdpNative => (37, 1 << 2),
            Self::XdpGeneric => (37, 1 << 1),
            Self::TcxIngress => (46, 1 << 3),
        }
    }
}

/// What a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// XDP; the kernel does not say in which mode.
    Xdp,
    /// TCX, ingress or egress.
    Tcx,
    /// A kind not used here, by its number in `enum bpf_link_type`.
    Other(u32),
}

/// What a link is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// What it is.
    pub kind: LinkKind,
    /// The kernel's number for its program.
    pub program_id: u32,
    /// The interface's index in its own network namespace; 0 once detached, or when the interface is gone.
    pub interface: u32,
}

/// A program's attachment to an interface.
#[derive(Debug)]
pub struct Link {
    descriptor: OwnedFd,
}

#[repr(C)]
struct CreateAttributes {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct UpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct DetachAttributes {
    link: u32,
}

/// Beginning of `struct bpf_link_info`, as far as XDP and TCX fill it.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
}

impl Link {
    /// Attaches `program` to the interface of this index in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's own. For XDP in the driver, among them: EOPNOTSUPP (the driver has none), ERANGE (the MTU is
    /// too large), ENOSPC (too few queues), EBUSY (another program is attached).
    pub fn attach(program: &Program, point: AttachPoint, interface: u32) -> Result<Self, BpfError> {
        let (attach_type, flags) = point.type_and_flags();
        let mut attributes =
            CreateAttributes { program: program.as_fd().as_raw_fd() as u32, interface, attach_type, flags };
        // SAFETY: the layout is the beginning of BPF_LINK_CREATE's (the kernel takes the rest as zero) and holds no
        // pointers; it returns a new descriptor.
        let descriptor = unsafe { bpf_descriptor(Command::LinkCreate, &mut attributes) }
            .map_err(|error| BpfError::new("attach a BPF program", error))?;
        Ok(Self { descriptor })
    }

    /// The link pinned at `path`.
    ///
    /// # Errors
    /// The kernel's own; invalid data where the pin is no link.
    pub fn open_pinned(path: &Path) -> Result<Self, BpfError> {
        let descriptor = pin::get(path)?;
        pin::expect_kind(descriptor.as_fd(), "bpf-link", "open a pinned BPF link")?;
        Ok(Self { descriptor })
    }

    /// Gives the link a name at `path` in a bpffs, so that it stays attached when this process ends.
    ///
    /// # Errors
    /// The kernel's own: the name is taken, or `path` is in no bpffs.
    pub fn pin(&self, path: &Path) -> Result<(), BpfError> {
        pin::pin(self.descriptor.as_fd(), path)
    }

    /// Puts `program` in the place of the attached one; every frame sees one or the other.
    ///
    /// # Errors
    /// The kernel's own: the link is detached (ENOLINK), the program is of another kind.
    pub fn replace_program(&self, program: &Program) -> Result<(), BpfError> {
        let mut attributes = UpdateAttributes {
            link: self.descriptor.as_raw_fd() as u32,
            program: program.as_fd().as_raw_fd() as u32,
            flags: 0,
            old_program: 0,
        };
        // SAFETY: the layout is BPF_LINK_UPDATE's and holds no pointers.
        unsafe { bpf(Command::LinkUpdate, &mut attributes) }
            .map_err(|error| BpfError::new("replace an attached BPF program", error))?;
        Ok(())
    }

    /// Takes the program off the interface, whoever else holds the link.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn detach(&self) -> Result<(), BpfError> {
        let mut attributes = DetachAttributes { link: self.descriptor.as_raw_fd() as u32 };
        // SAFETY: the layout is BPF_LINK_DETACH's and holds no pointers.
        unsafe { bpf(Command::LinkDetach, &mut attributes) }
            .map_err(|error| BpfError::new("detach a BPF program", error))?;
        Ok(())
    }

    /// What the link is attached to.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn info(&self) -> Result<LinkInfo, BpfError> {
        let mut raw = RawInfo::default();
        let mut attributes = InfoAttributes {
            descriptor: self.descriptor.as_raw_fd(),
            length: size_of::<RawInfo>() as u32,
            info: pointer_mut(&mut raw),
        };
        // SAFETY: the layout is BPF_OBJ_GET_INFO_BY_FD's; the kernel writes at most `length` bytes to `raw`, whose
        // fields take any bits.
        unsafe { bpf(Command::ObjectInfo, &mut attributes) }
            .map_err(|error| BpfError::new("ask about a BPF link", error))?;
        let kind = match raw.kind {
            6 => LinkKind::Xdp,
            11 => LinkKind::Tcx,
            other => LinkKind::Other(other),
        };
        let interface = if matches!(kind, LinkKind::Other(_)) { 0 } else { raw.interface };
        Ok(LinkInfo { kind, program_id: raw.program_id, interface })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
