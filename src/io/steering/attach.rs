//! Attaching to one interface, or taking over what a dead director left on it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketType};

use super::directory::{Directory, DirectoryLock, Entry, InterfaceLock, Pins};
use super::program::{self, Flavour};
use super::table::KeyTable;
use super::{AttachReport, SteeredInterface, SteeringError, SteeringKind};
use crate::sys::bpf::{AttachPoint, BpfError, Link, Map, MapKind, Program};
use crate::sys::claim::{Claim, ClaimError};

/// An interface that this director steers.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) name: String,
    pub(super) adopted: bool,
    kind: SteeringKind,
    link: Link,
    /// AF_XDP sockets by queue; none for a guard.
    pub(super) sockets: Option<Map>,
    pins: Option<Pins>,
    lock: Option<InterfaceLock>,
    _claim: Claim,
}

/// Keeps other directors off an interface, whatever directory they have: any number of raw sockets and TCX programs
/// may share one, and what they take would be forwarded twice. By the interface's index, which stays when it is renamed,
/// and in its network namespace: an interface that is moved to another one is lost to this director, and another's to take.
fn claim(interface: &str, index: u32) -> Result<Claim, SteeringError> {
    Claim::take(&format!("uvs/interface/{index}")).map_err(|error| match error {
        ClaimError::Taken { pid } => SteeringError::InUse { interface: interface.to_owned(), pid },
        ClaimError::System(source) => SteeringError::Claim { interface: interface.to_owned(), source },
    })
}

/// What is to be attached to.
#[derive(Clone, Copy)]
struct Target<'wanted> {
    wanted: &'wanted SteeredInterface,
    /// In the calling thread's network namespace.
    index: u32,
}

impl SteeringKind {
    const fn attach_point(self) -> AttachPoint {
        match self {
            Self::XdpNative => AttachPoint::XdpNative,
            Self::XdpGeneric => AttachPoint::XdpGeneric,
            Self::Guard => AttachPoint::TcxIngress,
        }
    }
}

/// Attaches to an interface. `keys` gets what a dead director's map holds, before any program changes.
pub(super) fn attach(
    directory: &Directory,
    keys: &mut KeyTable,
    wanted: &SteeredInterface,
) -> Result<(Attached, AttachReport), SteeringError> {
    let entry = Entry::of(&wanted.name)?;
    let target = Target { index: index_of(&wanted.name)?, wanted };
    let claim = claim(&wanted.name, target.index)?;
    let mut warnings = Vec::new();
    let locked = match directory.lock() {
        Ok(locked) => Some(locked),
        Err(error) if error.is_busy() => return Err(error),
        Err(error) => {
            warnings.push(format!(
                "{}: steering is neither locked nor pinned ({error}): if the director dies, the host answers for its \
                 services",
                wanted.name
            ));
            None
        }
    };
    let Some(locked) = locked else {
        return attach_with(keys, target, claim, None, None, warnings);
    };
    let lock = directory.lock_interface(&entry, &locked)?;
    let pins = match directory.open_pins(&entry, &locked) {
        Ok(pins) => Some(pins),
        Err(error) => {
            warnings.push(not_pinned(wanted, &error));
            None
        }
    };
    let result = attach_with(keys, target, claim, pins, Some(lock), warnings);
    if result.is_err() {
        // What is still pinned keeps dropping frames for the next attempt; otherwise nothing is to be left.
        // The first error is the one to tell.
        let _ = tidy_up(directory, &entry, &locked);
    }
    result
}

fn not_pinned(wanted: &SteeredInterface, error: &SteeringError) -> String {
    format!(
        "{}: steering is not pinned ({error}): if the director dies, the host answers for its services",
        wanted.name
    )
}

fn tidy_up(directory: &Directory, entry: &Entry, locked: &DirectoryLock) -> Result<(), SteeringError> {
    if let Some(pins) = directory.existing_pins(entry)
        && !pins.has_links()
    {
        pins.remove()?;
    }
    directory.lock_interface(entry, locked)?.remove(locked)?;
    directory.clean_up(locked)
}

fn attach_with(
    keys: &mut KeyTable,
    target: Target<'_>,
    claim: Claim,
    pins: Option<Pins>,
    lock: Option<InterfaceLock>,
    mut warnings: Vec<String>,
) -> Result<(Attached, AttachReport), SteeringError> {
    let wanted = target.wanted;
    let kind = wanted.kind;
    if let Some(pins) = &pins
        && !adopt_keys(keys, pins)?
    {
        warnings
            .push(format!("{}: another version's steering keys were found and not taken over", wanted.name));
    }
    let sockets = match kind {
        SteeringKind::Guard => None,
        SteeringKind::XdpNative | SteeringKind::XdpGeneric => {
            // The name by which libbpf, and so the crate afxdp, finds where to put a socket.
            Some(Map::create(MapKind::XdpSockets, "xsks_map", 4, 4, wanted.queues.max(1))?)
        }
    };
    let flavour = match &sockets {
        Some(sockets) => Flavour::Xdp { sockets: sockets.as_fd() },
        None => Flavour::Guard,
    };
    let program = program::load(keys, flavour)?;
    let pins = match pins {
        // From here on the pinned keys cover the attached program's: both the old one's and the new one's.
        Some(pins) => match pins.put_keys(keys.map(), keys.networks()) {
            Ok(()) => Some(pins),
            Err(error) if pins.has_links() => return Err(error),
            Err(error) => {
                warnings.push(not_pinned(wanted, &error));
                None
            }
        },
        None => None,
    };
    let (link, adopted) = match &pins {
        Some(pins) => put_program(keys, target, pins, &program)?,
        None => (link(&program, kind, target)?, false),
    };
    let report = AttachReport { interface: wanted.name.clone(), adopted, pinned: pins.is_some(), warnings };
    let name = wanted.name.clone();
    Ok((Attached { name, adopted, kind, link, sockets, pins, lock, _claim: claim }, report))
}

/// Adds the keys of a director before this one; says false where some are of another version's layout. One that knew no
/// networks has none pinned.
fn adopt_keys(keys: &mut KeyTable, pins: &Pins) -> Result<bool, SteeringError> {
    let addresses = pins.keys()?.map_or(Ok(true), |old| keys.merge(&old))?;
    let networks = pins.networks()?.map_or(Ok(true), |old| keys.merge_networks(&old))?;
    Ok(addresses && networks)
}

/// Attaches `program` and pins it, in the place of what a dead director left. At no moment do frames that match
/// its keys reach the host. Also says whether there was anything.
fn put_program(
    keys: &KeyTable,
    target: Target<'_>,
    pins: &Pins,
    program: &Program,
) -> Result<(Link, bool), SteeringError> {
    let mut old = pins.links(target.index)?;
    let adopted = !old.is_empty();
    let new = match old.iter().position(|(kind, _)| *kind == target.wanted.kind) {
        Some(same) => {
            let (_, link) = old.swap_remove(same);
            link.replace_program(program)?;
            link
        }
        None => {
            make_way_for(keys, target, pins, &mut old)?;
            let link = link(program, target.wanted.kind, target)?;
            pins.put_link(target.wanted.kind, &link)?;
            link
        }
    };
    for (kind, link) in old {
        pins.remove_link(kind, &link)?;
    }
    Ok((new, adopted))
}

/// Native and generic XDP exclude each other, so the one must be detached before the other is attached. Meanwhile,
/// and if that does not work until the next attempt, a guard stands in.
fn make_way_for(
    keys: &KeyTable,
    target: Target<'_>,
    pins: &Pins,
    old: &mut Vec<(SteeringKind, Link)>,
) -> Result<(), SteeringError> {
    let Some(at) = old.iter().position(|(kind, _)| *kind != SteeringKind::Guard) else {
        return Ok(());
    };
    if target.wanted.kind == SteeringKind::Guard {
        return Ok(());
    }
    if old.iter().all(|(kind, _)| *kind != SteeringKind::Guard) {
        let program = program::load(keys, Flavour::Guard)?;
        let guard = link(&program, SteeringKind::Guard, target)?;
        pins.put_link(SteeringKind::Guard, &guard)?;
        old.push((SteeringKind::Guard, guard));
    }
    let (kind, xdp) = old.swap_remove(at);
    pins.remove_link(kind, &xdp)
}

fn link(program: &Program, kind: SteeringKind, target: Target<'_>) -> Result<Link, SteeringError> {
    Link::attach(program, kind.attach_point(), target.index).map_err(|source| SteeringError::Attach {
        interface: target.wanted.name.clone(),
        kind,
        source,
    })
}

fn index_of(interface: &str) -> Result<u32, SteeringError> {
    // Any socket takes the question.
    rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)
        .and_then(|socket| rustix::net::netdevice::name_to_index(&socket, interface))
        .map_err(|source| SteeringError::NoSuchInterface {
            interface: interface.to_owned(),
            source: source.into(),
        })
}

/// Takes the program off the interface, and everything with it.
pub(super) fn detach(directory: &Directory, attached: Attached) -> Result<(), SteeringError> {
    let detached = match attached.link.detach() {
        // The interface is gone, and took the link along.
        Err(error) if error.errno() == Some(libc::ENOLINK) => Ok(()),
        result => result.map_err(SteeringError::from),
    };
    let Some(lock) = attached.lock else { return detached };
    let locked = directory.lock()?;
    let removed = attached.pins.map_or(Ok(()), |pins| pins.forget_link(attached.kind).and(pins.remove()));
    let unlocked = lock.remove(&locked);
    detached.and(removed).and(unlocked).and(directory.clean_up(&locked))
}

/// What [`detach_dead`](super::detach) found on an interface.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Removed,
}

/// Takes what a dead director left off an interface.
pub(super) fn detach_dead(
    directory: &Directory,
    entry: &Entry,
    locked: &DirectoryLock,
) -> Result<Found, SteeringError> {
    let lock = directory.lock_interface(entry, locked)?;
    let found = match directory.existing_pins(entry) {
        Some(pins) => pins.detach_all().map(|()| Found::Removed),
        None => Ok(Found::Nothing),
    };
    lock.remove(locked)?;
    found
}

/// Where sockets are put: the key is the queue, the value the descriptor.
pub(super) fn insert_socket(sockets: &Map, queue: u32, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
    sockets.insert(&queue.to_ne_bytes(), &(socket.as_raw_fd() as u32).to_ne_bytes())
}
