//! Opening the ports: the best way that works on all interfaces.

use std::io;

use super::options::{IoChoice, RunOptions, XdpMode};
use crate::director::BATCH_SIZE;
use crate::io::steering::{AttachReport, SteeredInterface, Steering, SteeringError, SteeringKind};
use crate::io::{PacketOptions, PacketPort, Port, PortKind, XdpError, XdpOptions, XdpPort};
use crate::net::PortState;
use crate::sys::frames::FramePool;
use crate::sys::interface::InterfaceControl;
use crate::sys::packet::PacketFilter;
use crate::types::PortId;

/// Bytes of a chunk for AF_XDP: a page, so that an MTU up to 3506 fits.
const XDP_CHUNK: usize = 4096;
/// Bytes of a chunk for raw sockets: the largest IP packet with its link header and headroom, in whole pages. Only
/// those pages are ever touched that frames reach into.
const PACKET_CHUNK: usize = 17 * 4096;
/// Chunks for frames that the director holds, and to spare.
const DIRECTOR_CHUNKS: usize = 1536;

/// Why ports could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The steering program.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// An AF_XDP socket.
    #[error("{interface}: {source}")]
    Xdp {
        /// The interface.
        interface: String,
        /// What went wrong.
        source: XdpError,
    },
    /// A raw socket.
    #[error("{interface}: raw socket: {source}")]
    Packet {
        /// The interface.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The interface went away.
    #[error("{0}: the interface has gone")]
    Gone(String),
    /// No memory for frames.
    #[error("no memory for frames: {0}")]
    Memory(io::Error),
}

/// One worker's frames and ports.
pub(super) struct WorkerPorts {
    /// Its frames.
    pub(super) frames: FramePool,
    /// By port; `None` where it owns no queue.
    pub(super) ports: Vec<Option<Box<dyn Port>>>,
}

/// All ports, opened.
pub(super) struct OpenPorts {
    /// How frames are taken off the interfaces.
    pub(super) kind: SteeringKind,
    /// By port: what it is.
    pub(super) kinds: Vec<PortKind>,
    /// By worker.
    pub(super) workers: Vec<WorkerPorts>,
    /// What came of attaching, by interface.
    pub(super) reports: Vec<AttachReport>,
    /// Why nothing better, where something better was tried.
    pub(super) why_not_better: Option<String>,
}

impl OpenPorts {
    /// Which worker sends for those that own no queue of a port.
    pub(super) fn owners(&self) -> Vec<usize> {
        let ports = self.kinds.len();
        let owner = |port: usize| self.workers.iter().position(|worker| worker.ports[port].is_some());
        (0..ports).map(|port| owner(port).unwrap_or(0)).collect()
    }
}

/// The ways to try, best first.
fn candidates(options: &RunOptions) -> &'static [SteeringKind] {
    use SteeringKind::{Guard, XdpGeneric, XdpNative};
    match (options.io, options.xdp_mode) {
        // Raw sockets before AF_XDP in the stack: what offloading merged passes the one whole, and is lost to the other.
        (IoChoice::Auto, XdpMode::Auto) => &[XdpNative, Guard, XdpGeneric],
        (IoChoice::Auto, XdpMode::Native) => &[XdpNative, Guard],
        (IoChoice::Auto, XdpMode::Generic) => &[XdpGeneric, Guard],
        (IoChoice::Xdp, XdpMode::Auto) => &[XdpNative, XdpGeneric],
        (IoChoice::Xdp, XdpMode::Native) => &[XdpNative],
        (IoChoice::Xdp, XdpMode::Generic) => &[XdpGeneric],
        (IoChoice::Packet, _) => &[Guard],
    }
}

/// Attaches to every interface and opens every port in the best way that works for all of them: a director whose
/// ports differ would have frames that fit one and not another.
///
/// # Errors
/// What the last way that was tried failed for.
pub(super) fn open(
    options: &RunOptions,
    interfaces: &[PortState],
    steering: impl Fn() -> Result<Steering, SteeringError>,
) -> Result<(Steering, OpenPorts), PortError> {
    let interfaces = &with_queues_in_use(interfaces)?;
    let mut failures: Vec<String> = Vec::new();
    let ways = candidates(options);
    for (position, &kind) in ways.iter().enumerate() {
        match open_as(options, interfaces, kind, steering()?) {
            Ok((steering, mut ports)) => {
                ports.why_not_better = (!failures.is_empty()).then(|| failures.join("; "));
                return Ok((steering, ports));
            }
            Err(error @ PortError::Steering(SteeringError::InUse { .. })) => return Err(error),
            Err(error) if position + 1 == ways.len() => return Err(error),
            Err(error) => failures.push(format!("no {kind}: {error}")),
        }
    }
    Err(PortError::Gone("no way to open a port was left".to_owned()))
}

/// The interfaces with the queues that are in use, where drivers say: many network cards could have more.
fn with_queues_in_use(interfaces: &[PortState]) -> Result<Vec<PortState>, PortError> {
    let gone = |name: &str| PortError::Gone(name.to_owned());
    let with = |interface: &PortState| {
        let queues = InterfaceControl::new()
            .and_then(|control| control.receive_queues(&interface.name))
            .map_err(|_| gone(&interface.name))?;
        let receive_queues = queues.unwrap_or(interface.receive_queues).max(1);
        Ok(PortState { receive_queues, ..interface.clone() })
    };
    interfaces.iter().map(with).collect()
}

fn open_as(
    options: &RunOptions,
    interfaces: &[PortState],
    kind: SteeringKind,
    mut steering: Steering,
) -> Result<(Steering, OpenPorts), PortError> {
    let mut reports = Vec::new();
    let mut opened = Ok(Vec::new());
    for interface in interfaces {
        let queues = interface.receive_queues;
        match steering.attach(&SteeredInterface { name: interface.name.clone(), queues, kind }) {
            Ok(report) => reports.push(report),
            Err(error) => {
                opened = Err(error.into());
                break;
            }
        }
    }
    let opened = opened.and_then(|_: Vec<()>| {
        (0..usize::from(options.workers))
            .map(|worker| open_worker(options, interfaces, kind, &steering, worker))
            .collect::<Result<Vec<_>, PortError>>()
    });
    match opened {
        Ok(workers) => {
            let (workers, kinds): (Vec<_>, Vec<_>) = workers.into_iter().unzip();
            let kinds = merge(kinds, interfaces.len());
            Ok((steering, OpenPorts { kind, kinds, workers, reports, why_not_better: None }))
        }
        Err(error) => {
            // What a dead director left stays, to go on dropping its clients' frames; the rest goes.
            if reports.iter().any(|report| report.adopted) {
                drop(steering);
            } else if let Err(error) = steering.stop() {
                tracing::warn!(%error, "cannot detach after a failed start");
            }
            Err(error)
        }
    }
}

/// Each port's kind, from the first worker that has it.
fn merge(kinds: Vec<Vec<Option<PortKind>>>, ports: usize) -> Vec<PortKind> {
    (0..ports).map(|port| kinds.iter().find_map(|kinds| kinds[port]).unwrap_or(PortKind::Packet)).collect()
}

fn open_worker(
    options: &RunOptions,
    interfaces: &[PortState],
    kind: SteeringKind,
    steering: &Steering,
    worker: usize,
) -> Result<(WorkerPorts, Vec<Option<PortKind>>), PortError> {
    match kind {
        SteeringKind::Guard => open_packet(options, interfaces, steering),
        SteeringKind::XdpNative | SteeringKind::XdpGeneric => {
            open_xdp(options, interfaces, kind, steering, worker)
        }
    }
}

fn open_xdp(
    options: &RunOptions,
    interfaces: &[PortState],
    kind: SteeringKind,
    steering: &Steering,
    worker: usize,
) -> Result<(WorkerPorts, Vec<Option<PortKind>>), PortError> {
    // Worker w of N owns the queues q with q mod N = w, on every interface.
    let owned = |interface: &PortState| -> Vec<u32> {
        (0..interface.receive_queues)
            .filter(|queue| *queue as usize % usize::from(options.workers) == worker)
            .collect()
    };
    let xdp = XdpOptions { complete_checksums: !options.no_checksum_completion, ..XdpOptions::default() };
    let rings: usize = interfaces.iter().map(|interface| xdp.chunks(owned(interface).len())).sum();
    let chunks = rings + xdp.reserve + DIRECTOR_CHUNKS;
    let mut frames = FramePool::new(chunks as u32, XDP_CHUNK).map_err(PortError::Memory)?;
    let mut ports: Vec<Option<Box<dyn Port>>> = Vec::new();
    let mut kinds = Vec::new();
    for interface in interfaces {
        let queues = owned(interface);
        if queues.is_empty() {
            ports.push(None);
            kinds.push(None);
            continue;
        }
        let name = || interface.name.clone();
        let index = interface.ifindex.ok_or_else(|| PortError::Gone(name()))?;
        let port = XdpPort::open(&mut frames, interface.port, index, &queues, xdp)
            .map_err(|source| PortError::Xdp { interface: name(), source })?;
        for (queue, socket) in port.sockets() {
            steering.insert_socket(&interface.name, queue, socket)?;
        }
        kinds.push(Some(match (kind, port.zero_copy()) {
            (SteeringKind::XdpNative, true) => PortKind::XdpNativeZeroCopy,
            (SteeringKind::XdpNative, false) => PortKind::XdpNativeCopy,
            _ => PortKind::XdpGeneric,
        }));
        ports.push(Some(Box::new(port)));
    }
    Ok((WorkerPorts { frames, ports }, kinds))
}

fn open_packet(
    options: &RunOptions,
    interfaces: &[PortState],
    steering: &Steering,
) -> Result<(WorkerPorts, Vec<Option<PortKind>>), PortError> {
    // Slots to receive into, and what waits to be sent, of each port.
    let chunks = interfaces.len() * 6 * BATCH_SIZE + DIRECTOR_CHUNKS;
    let frames = FramePool::new(chunks as u32, PACKET_CHUNK).map_err(PortError::Memory)?;
    let mut ports: Vec<Option<Box<dyn Port>>> = Vec::new();
    for interface in interfaces {
        let name = || interface.name.clone();
        let index = interface.ifindex.ok_or_else(|| PortError::Gone(name()))?;
        let group = (options.workers > 1).then(|| fanout_group(interface.port));
        let packet = PacketOptions { group, filter: PacketFilter::Attached, ..PacketOptions::default() };
        let port = PacketPort::open(interface.port, index, packet)
            .map_err(|source| PortError::Packet { interface: name(), source })?;
        steering.attach_filter(port.as_fd())?;
        ports.push(Some(Box::new(port)));
    }
    let kinds = vec![Some(PortKind::Packet); interfaces.len()];
    Ok((WorkerPorts { frames, ports }, kinds))
}

/// A number for the group of sockets on one interface that no other program is likely to use.
fn fanout_group(port: PortId) -> u16 {
    (std::process::id() as u16).wrapping_mul(31).wrapping_add(port.0)
}
