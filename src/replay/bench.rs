//! A whole director without a machine around it: frames, commands and the time are handed in.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::sync::Arc;

use super::Topology;
use crate::control::adm::Program;
use crate::control::command::Command;
use crate::control::error::ControlError;
use crate::control::exchange::Inside;
use crate::control::names::Names;
use crate::control::state::State;
use crate::director::{Batch, Capacity, Director, FrameCounts, Offload, Shared, Verdict};
use crate::forward::{NextHop, NextHopError};
use crate::sys::frames::{FramePool, HEADROOM};
use crate::types::{Duration, HashKey, Instant, PortId};

/// The longest frame, in bytes: the largest IP packet behind an Ethernet header with tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 2 * 4;
/// Frames in the bench's pool: a batch, and more than a director holds back.
const FRAMES: u32 = 1536;
/// When a bench begins.
pub const BEGINNING: Instant = Instant::from_nanos(0);
/// Secrets of the tables' hashes. Fixed: what a bench does is the same each time.
const KEYS: [HashKey; 2] = [
    HashKey::new([0x6265_6e63_6834_5f31, 0x7576_735f_6b65_7931]),
    HashKey::new([0x32, 0x7576_735f_6b65_7932]),
];

/// A frame that the director has decided about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// What is to be done with it.
    pub verdict: Verdict,
    /// The port it came in on.
    pub arrival: PortId,
    /// When it was decided.
    pub time: Instant,
    /// The frame, changed where it is to be sent.
    pub bytes: Vec<u8>,
}

/// A frame of more than [`MAX_FRAME`] bytes: no director gets to see such a one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a frame of {0} bytes is longer than any that a director gets to see")]
pub struct FrameTooLong(pub usize);

/// What somebody who wants packets to arrive should know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Warning {
    /// A service at an address that no interface has: its packets are not the director's.
    NotLocal(IpAddr),
    /// A real server in an interface's network, whose link address is not known.
    NoNeighbour(IpAddr),
    /// A real server to which no way leads.
    NoWay(IpAddr),
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotLocal(address) => {
                write!(f, "the service address {address} is no interface's: its packets are the host's")
            }
            Self::NoNeighbour(address) => {
                write!(
                    f,
                    "the link address of the real server {address} is not known: its packets are dropped"
                )
            }
            Self::NoWay(address) => {
                write!(f, "no way leads to the real server {address}: its packets are dropped")
            }
        }
    }
}

/// The program's surroundings, for a command.
pub struct Terminal<'a> {
    /// Names of hosts and ports.
    pub names: &'a dyn Names,
    /// Where listings go.
    pub stdout: &'a mut dyn Write,
    /// Where messages go.
    pub stderr: &'a mut dyn Write,
}

impl std::fmt::Debug for Terminal<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

/// A director, the state that commands change, and a network that is as told.
#[derive(Debug)]
pub struct Bench {
    director: Director,
    state: State,
    topology: Topology,
    frames: FramePool,
    batch: Batch,
    now: Instant,
    /// A command, or time, has changed what the director goes by.
    stale: bool,
    warned: HashSet<Warning>,
    warnings: BTreeSet<Warning>,
}

impl Bench {
    /// A director without services, at [`BEGINNING`]; it has one worker, whatever `capacity` says.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(topology: Topology, capacity: Capacity) -> io::Result<Self> {
        let shared = Shared::new(Capacity { workers: 1, ..capacity }, KEYS)?;
        let mut state = State::new(Arc::clone(&shared), BEGINNING);
        state.set_interfaces(topology.interfaces().iter().map(|interface| interface.name.clone()).collect());
        // Every frame comes here.
        Ok(Self {
            state,
            director: Director::new(shared, 0),
            topology,
            frames: FramePool::new(FRAMES, (HEADROOM + MAX_FRAME).next_multiple_of(4096))?,
            batch: Batch::new(),
            now: BEGINNING,
            stale: true,
            warned: HashSet::new(),
            warnings: BTreeSet::new(),
        })
    }

    /// The moment that it is.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The network around.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Frames by verdict so far.
    pub fn frame_counts(&self) -> FrameCounts {
        self.director.frame_counts()
    }

    /// Whether every frame so far ended in exactly one way, those of each port apart.
    pub fn is_conserved(&self) -> bool {
        self.director.is_conserved()
    }

    /// Runs the `ipvsadm` program, `args` beginning with its own name; returns the exit status.
    pub fn run(&mut self, args: &[OsString], stdin: &mut dyn Read, terminal: Terminal<'_>) -> i32 {
        self.with_program(terminal, |program| program.run(args, stdin))
    }

    /// Runs the program `uvs mark`, `args` without its name; returns the exit status.
    pub fn mark(&mut self, args: &[OsString], terminal: Terminal<'_>) -> i32 {
        self.with_program(terminal, |program| program.mark(args))
    }

    /// Does one command; a message about it names `place` first. Returns the exit status.
    pub fn execute(&mut self, place: Option<String>, command: Command, terminal: Terminal<'_>) -> i32 {
        self.with_program(terminal, |program| program.execute("ipvsadm", place, command))
    }

    fn with_program(&mut self, terminal: Terminal<'_>, act: impl FnOnce(&mut Program<'_>) -> i32) -> i32 {
        let Self { state, stale, now, .. } = self;
        let Terminal { names, stdout, stderr } = terminal;
        // Nobody looks before the next frame, or the next tick: by then it is in effect.
        let mut commit = |_: &mut State| *stale = true;
        let stats = |_: &State, _| String::new();
        let mut director = Inside { state, now: *now, commit: &mut commit, stats: &stats };
        act(&mut Program { names, director: &mut director, stdout, stderr })
    }

    /// Sets a setting of `net.ipv4.vs`.
    ///
    /// # Errors
    /// As [`State::set`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), ControlError> {
        self.stale = true;
        self.state.set(name, value)
    }

    /// What has come to notice since the last call; nothing comes twice.
    pub fn warnings(&mut self) -> Vec<Warning> {
        self.settle();
        std::mem::take(&mut self.warnings).into_iter().collect()
    }

    /// Makes what commands changed take effect.
    fn settle(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let services = self.state.steered().into_iter().map(|(_, address, _)| address);
        let outside = services.filter(|address| !self.topology.is_local(*address)).map(Warning::NotLocal);
        let ways = self.state.wanted().filter_map(|(_, address)| match self.topology.way(address) {
            NextHop::Failed(NextHopError::NeighbourFailed) => Some(Warning::NoNeighbour(address)),
            NextHop::Failed(_) => Some(Warning::NoWay(address)),
            _ => None,
        });
        for warning in outside.chain(ways) {
            if self.warned.insert(warning) {
                self.warnings.insert(warning);
            }
        }
        let network = self.topology.network(self.state.wanted());
        // First the ways, then who is to be reached by them.
        self.director.shared().network.store(Arc::new(network));
        self.state.publish();
    }

    /// Lets a frame arrive on `port` at `time`; a moment that has been counts as now. What is decided comes back: frames
    /// that time has set free, and this one, unless it has to wait.
    ///
    /// # Errors
    /// The frame is too long; time has passed nevertheless.
    pub fn feed(&mut self, port: PortId, bytes: &[u8], time: Instant) -> Result<Vec<Output>, FrameTooLong> {
        let mut outputs = self.advance(time);
        self.settle();
        let too_long = FrameTooLong(bytes.len());
        let frame = self.frames.allocate_copy(bytes).ok_or(too_long)?;
        if let Err(frame) = self.batch.push(frame, port, Offload::default()) {
            // Cannot be: the batch is emptied each time.
            self.frames.free(frame);
            return Err(too_long);
        }
        self.director.process(&mut self.batch, &self.frames, self.now);
        self.collect(&mut outputs);
        self.director.rest();
        Ok(outputs)
    }

    /// Lets time go on to `time`, with all that it brings; does nothing where that has been. Frames that had waited come
    /// back.
    pub fn advance(&mut self, time: Instant) -> Vec<Output> {
        let mut outputs = Vec::new();
        loop {
            let deadlines = [self.director.next_deadline(), Some(self.state.next_deadline())];
            let Some(next) = deadlines.into_iter().flatten().min().filter(|next| *next <= time) else {
                break;
            };
            self.now = self.now.max(next);
            self.tick(&mut outputs);
        }
        if time > self.now {
            self.now = time;
            self.tick(&mut outputs);
        }
        outputs
    }

    fn tick(&mut self, outputs: &mut Vec<Output>) {
        self.stale |= self.state.tick(self.now);
        self.settle();
        // Bounded work each time: as often as it takes.
        while !self.director.tick(&mut self.batch, &self.frames, self.now) {
            self.collect(outputs);
        }
        self.collect(outputs);
        self.director.rest();
    }

    fn collect(&mut self, outputs: &mut Vec<Output>) {
        for entry in self.batch.drain() {
            let bytes = self.frames.bytes(&entry.frame).to_vec();
            outputs.push(Output { verdict: entry.verdict, arrival: entry.port, time: self.now, bytes });
            self.frames.free(entry.frame);
        }
    }

    /// The span from [`BEGINNING`] to now.
    pub fn elapsed(&self) -> Duration {
        self.now.since(BEGINNING)
    }
}
