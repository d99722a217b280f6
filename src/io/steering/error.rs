//! What keeps steering from working, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::SteeringKind;
use crate::sys::bpf::BpfError;

/// Why steering failed.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The program cannot be attached to an interface.
    #[error("{interface}: cannot attach the steering program ({kind}): {}", explanation(*kind, source))]
    Attach {
        /// The interface.
        interface: String,
        /// How it was to be attached.
        kind: SteeringKind,
        /// What the kernel said.
        source: BpfError,
    },
    /// A live director has the interface.
    #[error(
        "{interface}: another director{} has it; stop that one first",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The interface.
        interface: String,
        /// The other's process id, where it wrote it down.
        pid: Option<u32>,
    },
    /// The interface could not be claimed.
    #[error("{interface}: cannot make sure that no other director has it: {source}")]
    Claim {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// More keys than there is room for.
    #[error("the steering keys come to {entries} entries, more than {most}")]
    TooManyKeys {
        /// How many entries.
        entries: usize,
        /// How many there may be.
        most: usize,
    },
    /// What was given as an interface's name cannot be one.
    #[error("'{0}' cannot be an interface's name")]
    BadInterfaceName(String),
    /// There is no such interface.
    #[error("{interface}: no such interface in this network namespace: {source}")]
    NoSuchInterface {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interface was given twice.
    #[error("{0}: already attached by this director")]
    AlreadyAttached(String),
    /// The interface has no AF_XDP program of ours.
    #[error("{0}: not attached with an XDP program by this director")]
    NoSockets(String),
    /// The directory for locks and pins.
    #[error("{path}: {source}", path = .path.display())]
    Directory {
        /// Which file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// BPF itself.
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

impl SteeringError {
    /// Whether somebody else keeps the directory locked.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Directory { source, .. } if source.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether attaching with [`SteeringKind::XdpGeneric`] may work where this, with
    /// [`SteeringKind::XdpNative`], did not: the driver cannot, as opposed to lacking privileges or an interface
    /// that somebody else has.
    pub fn is_worth_trying_generic(&self) -> bool {
        match self {
            Self::Attach { kind: SteeringKind::XdpNative, source, .. } => !matches!(
                source.errno(),
                None | Some(libc::EPERM | libc::EBUSY | libc::EEXIST | libc::ENODEV)
            ),
            _ => false,
        }
    }
}

/// Cause and cure of what the kernel said. Its drivers' explanations go to its log only.
fn explanation(kind: SteeringKind, source: &BpfError) -> String {
    let text = match (kind, source.errno()) {
        (_, Some(libc::EPERM)) => "not permitted; run as root, or with CAP_BPF and CAP_NET_ADMIN",
        (SteeringKind::Guard, Some(libc::EINVAL)) => {
            "the kernel has no TCX; Linux 6.6 or newer with CONFIG_NET_XGRESS is needed"
        }
        (SteeringKind::Guard, _) => return source.to_string(),
        (_, Some(libc::EBUSY | libc::EEXIST)) => {
            "another XDP program is attached; find it with 'ip link show', and remove it with the program that \
             attached it or with 'ip link set dev INTERFACE xdp off'"
        }
        (SteeringKind::XdpNative, Some(libc::EOPNOTSUPP)) => {
            "the interface's driver has no XDP (or not with its current settings: try 'ethtool -K INTERFACE lro off \
             gro-hw off'); use generic XDP or raw sockets"
        }
        (SteeringKind::XdpNative, Some(libc::ERANGE)) => {
            "the interface's MTU (on veth also the peer's) is too large for XDP in the driver, where a frame must \
             fit a page; lower it to 3498 or less, or use generic XDP or raw sockets"
        }
        (SteeringKind::XdpNative, Some(libc::ENOSPC)) => {
            "the interface has too few queues for XDP in the driver; on veth create it with as many rx queues as \
             its peer has tx queues ('ip link add ... numrxqueues N'), or use generic XDP or raw sockets"
        }
        (SteeringKind::XdpNative, Some(libc::ENOMEM)) => {
            "the driver got no memory or no queues for XDP; give it fewer channels ('ethtool -L'), or use generic \
             XDP or raw sockets"
        }
        (SteeringKind::XdpNative, Some(libc::EINVAL)) => {
            "the driver refused, often for its MTU or for receive offloading ('ethtool -K INTERFACE lro off gro-hw \
             off'; the kernel's log may say which); or use generic XDP or raw sockets"
        }
        _ => return source.to_string(),
    };
    format!("{text} ({source})")
}
