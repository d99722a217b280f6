//! The text of `uvs stats`: frames by verdict and drop reason, by worker and by port.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::control::state::State;
use crate::director::{DropReason, FrameCounts, Shared};
use crate::io::{PortKind, PortStatistics};
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

fn collect(sources: &Sources, shared: &Shared) -> Stats {
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
        frames: (&shared.frame_counts()).into(),
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
        ports,
        workers: reports
            .iter()
            .enumerate()
            .map(|(worker, report)| Worker {
                worker,
                frames: (&shared.counters(worker).frames()).into(),
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
    let mut out = String::new();
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{name:<36}{value:>14}");
    };
    let Frames { received, released, transmitted, replied, to_host, held, dropped } = &stats.frames;
    line("frames received", received);
    line("frames released", released);
    line("frames transmitted", transmitted);
    line("frames replied", replied);
    line("frames to host", to_host);
    line("frames held", held);
    for (reason, count) in dropped {
        line(&format!("dropped {reason}"), count);
    }
    line("connections IPv4", &stats.connections.ipv4);
    line("connections IPv6", &stats.connections.ipv6);
    line("connections capacity", &stats.connections.capacity);
    line("templates IPv4", &stats.templates.ipv4);
    line("templates IPv6", &stats.templates.ipv6);
    line("host delivered", &stats.host.delivered);
    line("host failed", &stats.host.failed);
    for port in &stats.ports {
        let kind = serde_json::to_value(port.kind).ok().and_then(|kind| Some(kind.as_str()?.to_owned()));
        let place = format!("{} worker {}", port.interface, port.worker);
        line(&format!("{place} kind"), &kind.unwrap_or_default());
        if let Some(trouble) = &port.trouble {
            line(&format!("{place} trouble"), trouble);
        }
        let Ok(serde_json::Value::Object(counters)) = serde_json::to_value(port.statistics) else { continue };
        for (name, value) in counters {
            line(&format!("{place} {}", name.replace('_', " ")), &value);
        }
    }
    for worker in &stats.workers {
        line(&format!("worker {} received", worker.worker), &worker.frames.received);
        line(&format!("worker {} transmitted", worker.worker), &worker.frames.transmitted);
        line(&format!("worker {} handover dropped", worker.worker), &worker.handover_dropped);
        line(&format!("worker {} free chunks", worker.worker), &worker.free_chunks);
    }
    out
}
