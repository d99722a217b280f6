//! The director as a program: opened, started, commanded, ended.

mod clients;
mod desk;
mod options;
mod ports;
mod stats;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration as StdDuration;

use parking_lot::Mutex;

use crate::control::client::control_path;
use crate::control::command::Command;
use crate::control::grammar::rules;
use crate::control::names::SystemNames;
use crate::control::server::ControlServer;
use crate::control::state::State;
use crate::director::{Capacity, Director, MAX_PORTS, Shared};
use crate::io::HostPort;
use crate::io::steering::{Steering, SteeringOptions};
use crate::net::Mirror;
use crate::service::MAX_REAL_SERVERS;
use crate::sys::memory::random_words;
use crate::sys::signals::Termination;
use crate::types::{HashKey, PortId};
use crate::worker::{Worker, WorkerReport, clock, handovers};

pub use options::{IoChoice, RunOptions, XdpMode};
pub use ports::PortError;

use desk::Desk;
use stats::Sources;

/// How often the daemon looks whether it is to end, lets time pass for rates and removed servers, and asks for the
/// link addresses of clients whose replies wait.
const TICK: StdDuration = StdDuration::from_millis(20);

/// Why a director could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The interfaces.
    #[error(transparent)]
    Network(#[from] crate::net::StartError),
    /// The ports.
    #[error(transparent)]
    Ports(#[from] PortError),
    /// The rules file cannot be read.
    #[error("{path}: {source}")]
    RulesFile {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A line of the rules.
    #[error("{path}, line {line}: {reason}")]
    Rule {
        /// The file.
        path: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The same interface was named twice.
    #[error("interface '{0}' is given twice")]
    Twice(String),
    /// More interfaces than a director can have.
    #[error("{0} interfaces are given; a director can have at most {MAX_PORTS}")]
    TooManyInterfaces(usize),
    /// The control socket.
    #[error("control socket: {0}")]
    Control(io::Error),
    /// The way to the host.
    #[error("cannot make the TUN device that brings the host its packets: {0}")]
    Host(io::Error),
    /// Anything else of the system.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Runs a director until SIGTERM or SIGINT.
///
/// # Errors
/// Why it could not start; nothing is left behind then.
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    if options.interfaces.len() > MAX_PORTS {
        return Err(RunError::TooManyInterfaces(options.interfaces.len()));
    }
    if let Some(twice) = first_repeated(&options.interfaces) {
        return Err(RunError::Twice(twice.to_owned()));
    }
    let termination = Termination::catch()?;
    let control = options.control.clone().unwrap_or_else(control_path);
    let server = ControlServer::bind(&control).map_err(RunError::Control)?;
    let running = match prepare(options) {
        Ok(running) => running,
        Err(error) => {
            server.discard();
            return Err(error);
        }
    };
    let served = match server.serve(Arc::clone(&running.desk) as Arc<_>) {
        Ok(served) => served,
        Err(error) => {
            let _ = running.give_up();
            return Err(RunError::Control(error));
        }
    };
    tracing::info!(control = %control.display(), "ready");
    let changed = running.desk.mirror().changed();
    while !termination.requested() {
        if changed.recv_timeout(TICK).is_ok() {
            running.desk.network_changed();
        }
        running.desk.tick();
        if let Some(worker) = running.threads.iter().find(|thread| thread.is_finished()) {
            tracing::error!(worker = worker.thread().name(), "a worker has ended; the director ends with it");
            drop(served);
            // As if killed: the host would reset every client, and the next director is to take over.
            return running.end(false);
        }
    }
    tracing::info!("stopping");
    drop(served);
    running.stop()
}

/// Everything but the control socket.
fn prepare(options: &RunOptions) -> Result<Running, RunError> {
    let interfaces =
        options.interfaces.iter().zip(0..).map(|(name, id)| (PortId(id), name.clone())).collect();
    let mirror = Mirror::start(interfaces)?;
    let workers = usize::from(options.workers);
    let capacity = Capacity { connections: options.connections, servers: MAX_REAL_SERVERS, workers };
    let keys = [HashKey::new(random_words()?), HashKey::new(random_words()?)];
    let shared = Shared::new(capacity, keys)?;
    let mut state = State::new(Arc::clone(&shared), clock());
    state.set_interfaces(options.interfaces.clone());
    if let Some(path) = &options.rules {
        load_rules(&mut state, path)?;
    }
    start(options, state, &shared, mirror)
}

fn first_repeated(names: &[String]) -> Option<&str> {
    names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)).map(|(_, name)| &name[..])
}

/// A director at work.
struct Running {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    stop: Arc<AtomicBool>,
    /// A dead director's program was taken over.
    adopted: bool,
}

impl Running {
    /// After a start that failed: what a dead director left goes on dropping its clients' frames, the rest goes.
    fn give_up(self) -> Result<(), RunError> {
        let detach = !self.adopted;
        self.end(detach)
    }

    fn stop(self) -> Result<(), RunError> {
        self.end(true)
    }

    /// Gives the interfaces back to the host, if it is to `detach` them, then ends the workers. In this order the host may answer a client that
    /// the director would still have served; in the other, its frames would be lost, which TCP mends, but for nothing.
    fn end(self, detach: bool) -> Result<(), RunError> {
        let detached = match self.desk.take_steering() {
            Some(steering) if detach => steering.stop(),
            _ => Ok(()),
        };
        self.stop.store(true, Ordering::Relaxed);
        let mut ended = Ok(());
        for thread in self.threads {
            match thread.join() {
                Ok(result) => ended = ended.and(result),
                Err(_) => ended = Err(io::Error::other("a worker panicked")),
            }
        }
        detached.map_err(PortError::from)?;
        Ok(ended?)
    }
}

/// Opens everything and starts the workers.
fn start(
    options: &RunOptions,
    mut state: State,
    shared: &Arc<Shared>,
    mirror: Mirror,
) -> Result<Running, RunError> {
    let snapshot = mirror.snapshot();
    let steering = || {
        let directory = options.state_directory.clone();
        Steering::start(&SteeringOptions { directory, interfaces: Vec::new(), keys: Default::default() })
            .map(|(steering, _)| steering)
    };
    let (steering, open) = ports::open(options, &snapshot.ports, steering)?;
    announce(options, &open);
    let adopted = open.reports.iter().any(|report| report.adopted);
    if adopted {
        // As long as a connection that the dead director knew could still be alive.
        let timeouts = crate::conn::Timeouts::default();
        state.drop_unknown_until(clock() + timeouts.of(6, crate::conn::State::ESTABLISHED));
    }
    let owners = open.owners();
    let largest = open.workers.first().map_or(0, |worker| worker.frames.capacity());
    let reports: Vec<_> =
        open.workers.iter().map(|_| Arc::new(Mutex::new(WorkerReport::default()))).collect();
    let sources = Sources {
        ports: options.interfaces.iter().cloned().zip(open.kinds).collect(),
        reports: reports.clone(),
    };
    let desk = Arc::new(Desk::new(state, Arc::clone(shared), mirror, steering, adopted, sources));
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = Running { desk, threads: Vec::new(), stop, adopted };
    let ways = match handovers(open.workers.len(), &owners, largest) {
        Ok(ways) => ways,
        Err(error) => {
            let _ = running.give_up();
            return Err(error.into());
        }
    };
    for (number, ((parts, handover), report)) in open.workers.into_iter().zip(ways).zip(reports).enumerate() {
        let worker = HostPort::open().map_err(RunError::Host).and_then(|host| {
            let worker = Worker {
                director: Director::new(Arc::clone(shared), number),
                frames: parts.frames,
                ports: parts.ports,
                host,
                handover,
                report,
                stop: Arc::clone(&running.stop),
            };
            Ok(spawn(worker, number)?)
        });
        match worker {
            Ok(thread) => running.threads.push(thread),
            Err(error) => {
                let _ = running.give_up();
                return Err(error);
            }
        }
    }
    // Last: from here on, frames come.
    let ((), committed) = running.desk.change(|_| ());
    if let Err(error) = committed {
        let _ = running.give_up();
        return Err(RunError::System(io::Error::other(error.to_string())));
    }
    Ok(running)
}

/// One line that says what is used, and why nothing better.
fn announce(options: &RunOptions, open: &ports::OpenPorts) {
    for (report, kind) in open.reports.iter().zip(&open.kinds) {
        let why = open.why_not_better.as_deref().unwrap_or("nothing better was asked for");
        tracing::info!(interface = %report.interface, kind = ?kind, adopted = report.adopted, why, "port");
        for warning in &report.warnings {
            tracing::warn!(interface = %report.interface, "{warning}");
        }
    }
    tracing::debug!(workers = options.workers, steering = %open.kind, "workers");
}

/// A worker's thread, on a core of its own where there is one.
fn spawn(worker: Worker, number: usize) -> io::Result<JoinHandle<io::Result<()>>> {
    let core = core_affinity::get_core_ids().and_then(|cores| match cores.len() {
        0 | 1 => None,
        count => cores.get(number % count).copied(),
    });
    std::thread::Builder::new().name(format!("uvs-worker-{number}")).spawn(move || {
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            tracing::warn!(worker = number, core = core.id, "cannot pin the worker to its core");
        }
        worker.run()
    })
}

/// Executes the rules of a file, all of them or none: a line that is wrong ends the start.
fn load_rules(state: &mut State, path: &Path) -> Result<(), RunError> {
    let name = || path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| RunError::RulesFile { path: name(), source })?;
    let names = SystemNames::new();
    // Lines 'set NAME VALUE' are ours; they take effect where they stand, so the text is read line by line.
    for (index, line) in text.lines().enumerate() {
        let fail = |reason: String| RunError::Rule { path: name(), line: index + 1, reason };
        let mut words = line.split_whitespace();
        if words.next() == Some("set") {
            let (Some(setting), Some(value)) = (words.next(), words.next()) else {
                return Err(fail("write 'set NAME VALUE'".to_owned()));
            };
            state.set(setting, value).map_err(|error| fail(error.to_string()))?;
            continue;
        }
        for rule in rules(line, &names) {
            let command: Command = rule.command.map_err(|error| fail(error.to_string()))?;
            state.execute(&command, clock()).map_err(|error| fail(error.to_string()))?;
        }
    }
    Ok(())
}
