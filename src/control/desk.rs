//! Requests answered from the state: what a daemon, a replay and a test have in common.

use std::io;

use super::command::{Command, ListWhat};
use super::error::ControlError;
use super::listing::{ServiceRow, Timeouts};
use super::marks::command::{MarkCommand, MarkRow};
use super::protocol::{ReplySink, Request, Response};
use super::settings;
use super::state::{Connections, State};
use crate::types::Instant;

/// The answer to one command, complete but for connections, which are read as they are sent: nobody has to wait for
/// somebody else's listing.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// Services, and the connection table's size.
    Services(u64, Vec<ServiceRow>),
    /// Services and rules for marks, to be saved.
    Rules(u64, Vec<ServiceRow>, Vec<MarkRow>),
    /// Rules for marks.
    Marks(Vec<MarkRow>),
    /// Connections.
    Connections(Connections),
    /// Timeouts.
    Timeouts(Timeouts),
    /// No synchronization daemon runs.
    Daemons,
    /// Text to print as it is.
    Text(String),
}

impl Answer {
    /// Sends the answer and its end. `now` is asked for once for each chunk of connections.
    ///
    /// # Errors
    /// Those of `reply`.
    pub fn send(self, reply: &mut dyn ReplySink, now: impl Fn() -> Instant) -> io::Result<()> {
        match self {
            Self::Done => (),
            Self::Services(size, services) => send_services(size, services, reply)?,
            Self::Rules(size, services, marks) => {
                send_services(size, services, reply)?;
                reply.marks(&marks)?;
            }
            Self::Marks(rows) => reply.marks(&rows)?,
            Self::Connections(mut walk) => {
                while let Some(rows) = walk.next_chunk(now()) {
                    reply.connections(rows)?;
                }
            }
            Self::Timeouts(timeouts) => reply.send(Response::Timeouts(timeouts))?,
            Self::Daemons => reply.send(Response::Daemons(Vec::new()))?,
            Self::Text(text) => reply.text(&text)?,
        }
        reply.end(Ok(()))
    }
}

fn send_services(size: u64, services: Vec<ServiceRow>, reply: &mut dyn ReplySink) -> io::Result<()> {
    reply.send(Response::Table { size })?;
    services.into_iter().try_for_each(|service| reply.service(service))
}

/// Answers one command. What it changed is not published yet.
///
/// # Errors
/// The kernel's answer, with nothing changed.
pub fn command(state: &mut State, command: &Command, now: Instant) -> Result<Answer, ControlError> {
    match command {
        Command::List { what: ListWhat::Services { service }, .. } => {
            Ok(Answer::Services(state.table_size(), state.services(service.as_ref())?))
        }
        Command::List { what: ListWhat::Connections, .. } => Ok(Answer::Connections(state.connections())),
        Command::List { what: ListWhat::Timeouts, .. } => Ok(Answer::Timeouts(state.timeouts())),
        Command::List { what: ListWhat::Daemons, .. } => Ok(Answer::Daemons),
        Command::Save { .. } => {
            Ok(Answer::Rules(state.table_size(), state.services(None)?, state.all_mark_rows()))
        }
        Command::Mark(MarkCommand::List { family, place, .. } | MarkCommand::Save { family, place, .. }) => {
            Ok(Answer::Marks(state.mark_rows(*family, *place)))
        }
        command => state.execute(command, now).map(|()| Answer::Done),
    }
}

/// Answers a request that is no list of commands; `stats` writes the text of `uvs stats`.
///
/// # Errors
/// Why it is refused, with nothing changed.
pub fn other(
    state: &mut State,
    request: &Request,
    stats: impl FnOnce(&State, bool) -> String,
) -> Result<Answer, ControlError> {
    match request {
        Request::Commands(_) => Err(ControlError::Refused("commands come one by one".to_owned())),
        Request::Set { name, value } => state.set(name, value).map(|()| Answer::Done),
        Request::Get { name } => {
            let value_of = |setting: &settings::Setting| {
                state.get(setting.name).unwrap_or_else(|_| setting.default_value())
            };
            settings::report(name.as_deref(), value_of).map(Answer::Text)
        }
        Request::Stats { json } => Ok(Answer::Text(stats(state, *json))),
    }
}
