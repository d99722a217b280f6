//! What can go wrong in the lab, in the operator's words.

use std::io;

use crate::net::NetlinkError;

/// Why the lab did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Not root.
    #[error("the lab needs root, because it makes network namespaces: run it as 'sudo uvs lab'")]
    NeedsRoot,
    /// A system call failed.
    #[error("{what}: {cause}")]
    System {
        /// What was being done.
        what: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The lab's network could not be built.
    #[error("the lab's network could not be built: {0}")]
    Network(#[from] NetlinkError),
    /// The director did not do what it was asked; what it said is in the text.
    #[error("{0}")]
    Director(String),
    /// Requests were not answered.
    #[error("{failed} of {requests} requests failed; the last one: {last}")]
    Requests {
        /// Requests that failed.
        failed: u32,
        /// Requests that were sent.
        requests: u32,
        /// Why the last one failed.
        last: String,
    },
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// For `map_err`: the failure of `what`.
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::System { what, cause }
    }
}
