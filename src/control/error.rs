//! What a director answers when it refuses a command.

use serde::{Deserialize, Serialize};

use super::command::Command;
use crate::service::marks::MAX_MARK_RULES;

/// Why a command was refused: the text is what `ipvsadm` prints for the kernel's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum ControlError {
    /// `-A` of a service that there is.
    #[error("Service already exists")]
    ServiceExists,
    /// `-E`, `-D`, `-Z`, `-L` of a service that there is not.
    #[error("No such service")]
    NoSuchService,
    /// `-a`, `-e`, `-d` for a service that there is not.
    #[error("Service not defined")]
    ServiceNotDefined,
    /// `-a` of a server that there is.
    #[error("Destination already exists")]
    ServerExists,
    /// `-e`, `-d` of a server that there is not.
    #[error("No such destination")]
    NoSuchServer,
    /// A scheduler or persistence engine that nobody knows.
    #[error("Scheduler or persistence engine not found")]
    NoScheduler,
    /// A lower threshold above the upper one.
    #[error("Numerical result out of range")]
    OutOfRange,
    /// A command that makes no sense here.
    #[error("Invalid operation.  Possibly wrong module version, address not unicast, ...")]
    InvalidOperation,
    /// `--start-daemon` of a role that runs.
    #[error("Daemon has already run")]
    DaemonRuns,
    /// `--stop-daemon` of a role that does not run.
    #[error("No daemon is running")]
    NoDaemon,
    /// A table is full.
    #[error("Memory allocation problem")]
    NoMemory,
    /// IPv6 where only IPv4 goes.
    #[error("Operation not supported with IPv6")]
    NotWithIpv6,
    /// A family that does not go.
    #[error("Operation not supported with specified address family")]
    NotWithFamily,
    /// What this director cannot do yet; says what that is.
    #[error("{0} is not supported yet")]
    NotSupported(String),
    /// A name that [`settings`](super::settings) does not have.
    #[error("no setting is called '{0}'")]
    NoSuchSetting(String),
    /// A value that a setting cannot have.
    #[error("'{value}' is no value for {name}: {expected}")]
    BadSetting {
        /// The setting.
        name: String,
        /// What it was to become.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// No rule for marks is the same as this one.
    #[error("Bad rule (does a matching rule exist in that chain?).")]
    NoMarkRule,
    /// A place in the rules for marks that there is not; says for what.
    #[error("Index of {0} too big.")]
    MarkPlace(String),
    /// More rules for marks than there is room for.
    #[error("there are no more than {MAX_MARK_RULES} rules of an address family")]
    TooManyMarkRules,
    /// A request that the director does not take.
    #[error("the director refused the request: {0}")]
    Refused(String),
}

impl ControlError {
    /// The exit status of the program whose only command this is the answer to.
    pub const fn status(&self, command: &Command) -> i32 {
        match command {
            Command::List { .. } | Command::Mark(_) => 1,
            _ => 255,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::{ListOptions, ListWhat};

    #[test]
    fn a_listing_fails_with_1_and_all_else_with_255() {
        let list = Command::List { what: ListWhat::Connections, options: ListOptions::default() };
        assert_eq!(ControlError::NoSuchService.status(&list), 1);
        assert_eq!(ControlError::ServiceExists.status(&Command::Flush), 255);
        let error = ControlError::NotSupported("NAT (-m)".to_owned());
        assert_eq!(error.to_string(), "NAT (-m) is not supported yet");
    }
}
