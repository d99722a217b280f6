//! The director over a capture: offline, without privileges, the same each time.
//!
//! * [`Bench`] - a whole director, to which frames, commands and the time are handed
//! * [`Topology`] - the network around it, as told
//! * [`run`] - `uvs replay`

mod bench;
mod capture;
mod options;
mod play;
mod script;
#[cfg(test)]
mod tests;
mod topology;

use std::io;
use std::path::PathBuf;

use crate::control::grammar::GrammarError;
use crate::types::Duration;

pub use bench::{BEGINNING, Bench, FrameTooLong, MAX_FRAME, Output, Terminal, Warning};
pub use capture::{CaptureError, MAX_INPUTS};
pub use options::{BadOption, InterfaceOption, NextHopOption, Options, Seconds};
pub use play::run;
pub use script::{BadLine, BadLineReason};
pub use topology::{Interface, MAX_INTERFACES, MTU, Neighbour, Topology, TopologyError};

/// The longest time that a replay goes through.
pub const MAX_SPAN: Duration = Duration::from_secs(366 * 86_400);

/// Why a replay did not start.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The options do not fit together.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// An option names an interface that is not given.
    #[error("no --interface is called {0}")]
    NoSuchInterface(String),
    /// More than [`MAX_INPUTS`].
    #[error("more than {MAX_INPUTS} captures to read")]
    TooManyInputs,
    /// A capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The rules cannot be read.
    #[error("{}: {source}", .path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A line of the rules.
    #[error("{}, {bad}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// What is wrong with the line.
        bad: Box<BadLine>,
    },
    /// A listing that is none.
    #[error("--show '{0}': {1}")]
    Show(String, GrammarError),
    /// A command where a listing is due.
    #[error("--show '{0}': it is no listing, as -L -n and -L -n -c are")]
    NoListing(String),
    /// A capture would be written over what is read, or over another.
    #[error("{}: it cannot be written, as it is another of the files, too", .0.display())]
    SameFile(PathBuf),
    /// A capture cannot be written.
    #[error("{}: {source}", .path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No memory for the tables.
    #[error("no room for {connections} connections: {source}")]
    Memory {
        /// How many.
        connections: u32,
        /// What the system says.
        source: io::Error,
    },
}
