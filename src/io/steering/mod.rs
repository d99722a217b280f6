//! Steering: which frames come to the director, and which stay the host's.
//!
//! A program on each interface takes the frames that match the [`SteeringKey`]s, so that everything else (ARP,
//! SSH, routing daemons) goes on to work on the director's host. How it takes them is a [`SteeringKind`].
//!
//! # When the director dies
//! Its programs stay, pinned in a bpffs: frames to its services are **dropped**, since the host would answer them
//! by resetting every client's connection. The next director adopts what it finds; [`detach`] removes it without
//! starting one; so does [`Steering::stop`]. Merely dropping a [`Steering`] is dying.

mod attach;
mod directory;
mod error;
mod key;
mod program;
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use attach::{Attached, Found};
use directory::{Directory, Entry};
use program::Flavour;
use table::KeyTable;

use crate::sys::bpf::Program;

pub use directory::DEFAULT_DIRECTORY;
pub use error::SteeringError;
pub use key::SteeringKey;
pub use program::{MAX_IPV6_EXTENSIONS, MAX_VLAN_TAGS};
pub use table::{MAX_STEERING_ENTRIES, MAX_STEERING_NETWORKS};

/// How frames are taken off an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SteeringKind {
    /// XDP in the driver, to AF_XDP sockets.
    XdpNative,
    /// XDP in the network stack, to AF_XDP sockets.
    XdpGeneric,
    /// Raw sockets see the frames, and a TCX program keeps the host from seeing them too.
    Guard,
}

impl SteeringKind {
    const ALL: [Self; 3] = [Self::XdpNative, Self::XdpGeneric, Self::Guard];

    /// The kind's name; also that of its pin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp-native",
            Self::XdpGeneric => "xdp-generic",
            Self::Guard => "guard",
        }
    }
}

impl fmt::Display for SteeringKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An interface to be steered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SteeredInterface {
    /// Its name, in the calling thread's network namespace.
    pub name: String,
    /// Its receive queues: how many AF_XDP sockets it may get. Frames on queues beyond are dropped.
    pub queues: u32,
    /// How frames are taken.
    pub kind: SteeringKind,
}

/// What [`Steering::start`] needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SteeringOptions {
    /// For locks and pins; see [`DEFAULT_DIRECTORY`].
    pub directory: PathBuf,
    /// The interfaces, which [`Steering::attach`] can add to.
    pub interfaces: Vec<SteeredInterface>,
    /// The keys to begin with.
    pub keys: BTreeSet<SteeringKey>,
}

/// How an interface was attached.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "warnings are the operator's to see"]
pub struct AttachReport {
    /// The interface's name.
    pub interface: String,
    /// Whether a dead director's program was taken over.
    pub adopted: bool,
    /// Whether the program outlives this director.
    pub pinned: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// The programs on the director's interfaces, and their keys.
///
/// Dropping this without [`stop`](Self::stop) leaves the programs on the interfaces, dropping the services'
/// frames, for the next director to adopt.
#[derive(Debug)]
pub struct Steering {
    directory: Directory,
    keys: KeyTable,
    filter: Program,
    interfaces: Vec<Attached>,
}

impl Steering {
    /// Attaches to all interfaces, or to none.
    ///
    /// Adopted interfaces also keep the keys of the director before, until [`set_keys`](Self::set_keys).
    ///
    /// # Errors
    /// No privileges; a live director has an interface; an interface cannot be attached to (then
    /// [`SteeringError::is_worth_trying_generic`]); too many keys.
    pub fn start(options: &SteeringOptions) -> Result<(Self, Vec<AttachReport>), SteeringError> {
        let mut keys = KeyTable::create()?;
        keys.replace(&options.keys)?;
        let filter = program::load(&keys, Flavour::Filter)?;
        let directory = Directory::new(&options.directory);
        let mut steering = Self { directory, keys, filter, interfaces: Vec::new() };
        let mut reports = Vec::new();
        for interface in &options.interfaces {
            match steering.attach(interface) {
                Ok(report) => reports.push(report),
                Err(error) => {
                    steering.undo();
                    return Err(error);
                }
            }
        }
        Ok((steering, reports))
    }

    /// Attaches to one more interface.
    ///
    /// # Errors
    /// As [`start`](Self::start). The other interfaces are not affected, and what a dead director left on this one
    /// goes on dropping its frames.
    pub fn attach(&mut self, interface: &SteeredInterface) -> Result<AttachReport, SteeringError> {
        if self.interfaces.iter().any(|attached| attached.name == interface.name) {
            return Err(SteeringError::AlreadyAttached(interface.name.clone()));
        }
        let (attached, report) = attach::attach(&self.directory, &mut self.keys, interface)?;
        self.interfaces.push(attached);
        Ok(report)
    }

    /// Detaches what was not there before, and leaves what was.
    fn undo(mut self) {
        for attached in std::mem::take(&mut self.interfaces) {
            if !attached.adopted {
                // On the way out with the error that matters.
                let _ = attach::detach(&self.directory, attached);
            }
        }
    }

    /// Makes exactly these keys count, on all interfaces. New ones are added before old ones are removed.
    ///
    /// # Errors
    /// Too many keys (nothing changed), see [`MAX_STEERING_ENTRIES`] and [`MAX_STEERING_NETWORKS`]; or the kernel's own, after which some of the
    /// change is done, never less than the keys in both.
    pub fn set_keys(&mut self, keys: &BTreeSet<SteeringKey>) -> Result<(), SteeringError> {
        self.keys.replace(keys)
    }

    /// Makes these keys count as well as those that do.
    ///
    /// # Errors
    /// Too many keys (nothing changed), or the kernel's own, after which some of the keys are added.
    pub fn add_keys(&mut self, keys: &BTreeSet<SteeringKey>) -> Result<(), SteeringError> {
        self.keys.extend(keys)
    }

    /// Gives an interface's frames of one receive queue to an AF_XDP socket, which has an RX ring and is bound to
    /// that queue. Closing the socket takes it back.
    ///
    /// # Errors
    /// The interface is not attached, or by a guard; or the kernel's own, as for a queue out of range.
    pub fn insert_socket(
        &self,
        interface: &str,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), SteeringError> {
        let sockets = self
            .interfaces
            .iter()
            .find(|attached| attached.name == interface)
            .and_then(|attached| attached.sockets.as_ref())
            .ok_or_else(|| SteeringError::NoSockets(interface.to_owned()))?;
        Ok(attach::insert_socket(sockets, queue, socket)?)
    }

    /// Makes a raw socket (which sees Ethernet headers) receive only what the guard keeps from the host.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn attach_filter(&self, socket: BorrowedFd<'_>) -> Result<(), SteeringError> {
        Ok(self.filter.attach_to_socket(socket)?)
    }

    /// Gives all interfaces back to the host, and removes everything that was pinned.
    ///
    /// # Errors
    /// The first thing that went wrong; everything else is done nonetheless.
    pub fn stop(mut self) -> Result<(), SteeringError> {
        std::mem::take(&mut self.interfaces)
            .into_iter()
            .map(|attached| attach::detach(&self.directory, attached))
            .fold(Ok(()), Result::and)
    }
}

/// What [`detach`] did.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Detached {
    /// Interfaces given back to the host, by name.
    pub removed: Vec<String>,
    /// Interfaces left alone, since a live director has them: name, and its process id.
    pub in_use: Vec<(String, Option<u32>)>,
}

/// Gives back to the host what a dead director left: one interface of the calling thread's network namespace,
/// or everything in the directory.
///
/// # Errors
/// A live director has the interface that was named; or the kernel's own.
pub fn detach(directory: &Path, interface: Option<&str>) -> Result<Detached, SteeringError> {
    let directory = Directory::new(directory);
    let mut result = Detached::default();
    if !directory.exists() {
        return Ok(result);
    }
    let locked = directory.lock()?;
    let entries = match interface {
        Some(interface) => vec![Entry::of(interface)?],
        None => directory.entries(&locked)?,
    };
    for entry in entries {
        match attach::detach_dead(&directory, &entry, &locked) {
            Ok(Found::Removed) => result.removed.push(entry.interface()),
            Ok(Found::Nothing) => {}
            Err(SteeringError::InUse { interface: name, pid }) if interface.is_none() => {
                result.in_use.push((name, pid));
            }
            Err(error) => return Err(error),
        }
    }
    directory.clean_up(&locked)?;
    Ok(result)
}
