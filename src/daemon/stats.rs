//! The text of `uvs stats`: frames by verdict and drop reason, of all, by interface and by worker; and what ports,
//! workers and the way to the host say of themselves.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::control::state::State;
use crate::director::{DropReason, FrameCounts, Shared};
use crate::io::{PortKind, PortStatistics};
use crate::types::PortId;
use crate::worker::WorkerReport;

/// Where the counters are.
pub(super) struct Sources {
    /// Name and kind of each port.
    pub(super) ports: Vec<(String, PortKind)>,
    /// What each worker last wrote down.
    pub(super) reports: Vec<Arc<Mutex<WorkerReport>>>,
}

impl Sources {
    /// By port: its name, and how many frames were too large for it.
    pub(super) fn oversized(&self) -> Vec<(&str, u64)> {
        let lost = |port: usize| {
            let of = |report: &Arc<Mutex<WorkerReport>>| {
                let report = report.lock();
                report.ports.get(port).and_then(|entry| Some(entry.as_ref()?.0.oversized)).unwrap_or(0)
            };
            self.reports.iter().map(of).sum()
        };
        self.ports.iter().enumerate().map(|(port, (name, _))| (&name[..], lost(port))).collect()
    }
}

#[derive(Serialize)]
struct Stats {
    frames: Frames,
    connections: Connections,
    templates: Templates,
    host: Host,
    interfaces: Vec<Interface>,
    ports: Vec<Port>,
    workers: Vec<Worker>,
}

#[derive(Serialize)]
struct Frames {
    received: u64,
    released: u64,
    transmitted: u64,
    replied: u64,
    to_host: u64,
    held: u64,
    dropped: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Connections {
    ipv4: u64,
    ipv6: u64,
    capacity: u32,
}

/// Connection templates; as many fit as connections.
#[derive(Serialize)]
struct Templates {
    ipv4: u64,
    ipv6: u64,
}

#[derive(Serialize)]
struct Host {
    delivered: u64,
    not_ip: u64,
    failed: u64,
}

/// What came in by an interface, over all workers.
#[derive(Serialize)]
struct Interface {
    interface: String,
    frames: Frames,
}

/// A worker's socket on an interface, and what that counts itself.
#[derive(Serialize)]
struct Port {
    interface: String,
    kind: PortKind,
    worker: usize,
    #[serde(flatten)]
    statistics: PortStatistics,
    trouble: Option<String>,
}

#[derive(Serialize)]
struct Worker {
    worker: usize,
    frames: Frames,
    handover_dropped: u64,
    free_chunks: usize,
    chunks: u32,
}

impl From<&FrameCounts> for Frames {
    fn from(counts: &FrameCounts) -> Self {
        let dropped = DropReason::ALL.iter().map(|&reason| (reason.name(), counts.dropped_for(reason)));
        Self {
            received: counts.received,
            released: counts.released,
            transmitted: counts.transmitted,
            replied: counts.replied,
            to_host: counts.to_host,
            held: counts.held,
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// Frames by worker and port, all of one reading: so the sums agree while frames flow.
struct FramesByPlace(Vec<Vec<FrameCounts>>);

impl FramesByPlace {
    fn read(sources: &Sources, shared: &Shared) -> Self {
        let of = |worker: usize, port: usize| shared.counters(worker).frames_of(PortId(port as u16));
        let row = |worker| (0..sources.ports.len()).map(|port| of(worker, port)).collect();
        Self((0..shared.workers()).map(row).collect())
    }

    fn total(&self) -> FrameCounts {
        self.0.iter().flatten().sum()
    }

    fn of_worker(&self, worker: usize) -> FrameCounts {
        self.0.get(worker).into_iter().flatten().sum()
    }

    fn of_port(&self, port: usize) -> FrameCounts {
        self.0.iter().filter_map(|ports| ports.get(port)).sum()
    }
}

fn collect(sources: &Sources, shared: &Shared) -> Stats {
    let frames = FramesByPlace::read(sources, shared);
    let reports: Vec<WorkerReport> = sources.reports.iter().map(|report| report.lock().clone()).collect();
    let mut ports = Vec::new();
    for (index, (interface, kind)) in sources.ports.iter().enumerate() {
        for (worker, report) in reports.iter().enumerate() {
            let Some(Some((statistics, trouble))) = report.ports.get(index) else { continue };
            ports.push(Port {
                interface: interface.clone(),
                kind: *kind,
                worker,
                statistics: *statistics,
                trouble: trouble.clone(),
            });
        }
    }
    let sum = |field: fn(&WorkerReport) -> u64| reports.iter().map(field).sum();
    Stats {
        frames: (&frames.total()).into(),
        connections: Connections {
            ipv4: shared.ipv4.alive(),
            ipv6: shared.ipv6.alive(),
            capacity: shared.ipv4.capacity(),
        },
        templates: Templates { ipv4: shared.ipv4.templates().alive(), ipv6: shared.ipv6.templates().alive() },
        host: Host {
            delivered: sum(|report| report.host.delivered),
            not_ip: sum(|report| report.host.not_ip),
            failed: sum(|report| report.host.failed),
        },
        interfaces: sources
            .ports
            .iter()
            .enumerate()
            .map(|(port, (interface, _))| Interface {
                interface: interface.clone(),
                frames: (&frames.of_port(port)).into(),
            })
            .collect(),
        ports,
        workers: reports
            .iter()
            .enumerate()
            .map(|(worker, report)| Worker {
                worker,
                frames: (&frames.of_worker(worker)).into(),
                handover_dropped: report.handover_dropped,
                free_chunks: report.chunks.0,
                chunks: report.chunks.1,
            })
            .collect(),
    }
}

/// The statistics as text, or as JSON.
pub(super) fn text(sources: &Sources, shared: &Shared, _state: &State, json: bool) -> String {
    let stats = collect(sources, shared);
    if json {
        // Plain numbers and strings: writing them cannot fail.
        let text = serde_json::to_string_pretty(&stats).unwrap_or_default();
        return text + "\n";
    }
    render(&stats)
}

fn render(stats: &Stats) -> String {
    let mut lines = Lines::default();
    lines.frames("", &stats.frames);
    lines.add("connections IPv4", &stats.connections.ipv4);
    lines.add("connections IPv6", &stats.connections.ipv6);
    lines.add("connections capacity", &stats.connections.capacity);
    lines.add("templates IPv4", &stats.templates.ipv4);
    lines.add("templates IPv6", &stats.templates.ipv6);
    lines.add("host delivered", &stats.host.delivered);
    lines.add("host failed", &stats.host.failed);
    for Interface { interface, frames } in &stats.interfaces {
        lines.frames(&format!("{interface} "), frames);
    }
    for port in &stats.ports {
        lines.port(port);
    }
    for Worker { worker, frames, handover_dropped, free_chunks, .. } in &stats.workers {
        lines.frames(&format!("worker {worker} "), frames);
        lines.add(&format!("worker {worker} handover dropped"), handover_dropped);
        lines.add(&format!("worker {worker} free chunks"), free_chunks);
    }
    lines.0
}

/// Text of one name and one value a line.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: &dyn std::fmt::Display) {
        let _ = writeln!(self.0, "{name:<36}{value:>14}");
    }

    /// By verdict, and of the reasons to drop one, those there were.
    fn frames(&mut self, whose: &str, frames: &Frames) {
        let Frames { received, released, transmitted, replied, to_host, held, dropped } = frames;
        for (name, count) in [
            ("received", received),
            ("released", released),
            ("transmitted", transmitted),
            ("replied", replied),
            ("to host", to_host),
            ("held", held),
        ] {
            self.add(&format!("{whose}frames {name}"), count);
        }
        for (reason, count) in dropped {
            self.add(&format!("{whose}dropped {reason}"), count);
        }
    }

    fn port(&mut self, port: &Port) {
        let kind = serde_json::to_value(port.kind).ok().and_then(|kind| Some(kind.as_str()?.to_owned()));
        let place = format!("{} worker {}", port.interface, port.worker);
        self.add(&format!("{place} kind"), &kind.unwrap_or_default());
        if let Some(trouble) = &port.trouble {
            self.add(&format!("{place} trouble"), trouble);
        }
        let Ok(serde_json::Value::Object(counters)) = serde_json::to_value(port.statistics) else { return };
        for (name, value) in counters {
            self.add(&format!("{place} {}", name.replace('_', " ")), &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::director::{Batch, Capacity, Director, Offload};
    use crate::sys::frames::FramePool;
    use crate::types::{HashKey, Instant};

    /// Shorter than a link header, or an ARP request.
    fn feed(shared: &Arc<Shared>, worker: usize, sent: &[(u16, &[u8])]) {
        let mut director = Director::new(Arc::clone(shared), worker);
        let mut frames = FramePool::new(64, 2048).unwrap();
        let mut batch = Batch::new();
        for (port, bytes) in sent {
            let frame = frames.allocate_copy(bytes).unwrap();
            batch.push(frame, PortId(*port), Offload::default()).unwrap();
        }
        director.process(&mut batch, &frames, Instant::ZERO);
        batch.clear(&mut frames);
        assert!(director.is_conserved());
    }

    #[test]
    fn frames_are_shown_by_interface_and_by_worker() {
        let capacity = Capacity { connections: 16, servers: 1, workers: 2 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).unwrap();
        let mut arp = [0_u8; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let short = [0_u8; 9];
        feed(&shared, 0, &[(0, &arp), (1, &short), (0, &arp), (1, &arp)]);
        feed(&shared, 1, &[(1, &short), (1, &short)]);
        let sources = Sources {
            ports: ["eth0", "eth1"].map(|name| (name.to_owned(), PortKind::Packet)).to_vec(),
            reports: (0..2).map(|_| Arc::default()).collect(),
        };
        let stats: Value = serde_json::to_value(collect(&sources, &shared)).unwrap();
        // {whose frames, received, to the host, dropped as truncated}
        for (frames, counts) in [
            (&stats["frames"], (6, 3, Some(3))),
            (&stats["interfaces"][0]["frames"], (2, 2, None)),
            (&stats["interfaces"][1]["frames"], (4, 1, Some(3))),
            (&stats["workers"][0]["frames"], (4, 3, Some(1))),
            (&stats["workers"][1]["frames"], (2, 0, Some(2))),
        ] {
            let count = |name: &str| frames[name].as_u64().unwrap();
            let dropped = frames["dropped"]["truncated-frame"].as_u64();
            assert_eq!((count("received"), count("to_host"), dropped), counts, "{stats:#}");
        }
        assert_eq!(stats["interfaces"][1]["interface"], "eth1");
        let text = render(&collect(&sources, &shared));
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok())
        };
        for (name, count) in [
            ("frames received", Some(6)),
            ("dropped truncated-frame", Some(3)),
            ("eth0 frames to host", Some(2)),
            ("eth0 dropped truncated-frame", None),
            ("eth1 dropped truncated-frame", Some(3)),
            ("worker 0 dropped truncated-frame", Some(1)),
            ("worker 1 frames received", Some(2)),
            ("worker 1 frames to host", Some(0)),
        ] {
            assert_eq!(value(name), count, "{name}: {text}");
        }
    }
}
