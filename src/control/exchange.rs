//! Where a program's requests go: to a director behind a socket, or to one in the same process.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use super::client::{Client, explain};
use super::command::Command;
use super::desk;
use super::error::ControlError;
use super::protocol::{ReplySink, Request, Response};
use super::state::State;
use crate::types::Instant;

/// A director that can be asked.
pub trait Exchange {
    /// Makes sure that there is a director, before anything is sent to it.
    ///
    /// # Errors
    /// There is none, or it cannot be reached.
    fn connect(&mut self) -> io::Result<()>;

    /// Sends a request and hands each part of the answer to `take`, to its end.
    ///
    /// # Errors
    /// The director went away, or said nothing for too long; those of `take`.
    fn call(&mut self, request: &Request, take: &mut dyn FnMut(Response) -> io::Result<()>)
    -> io::Result<()>;

    /// Tells a person what an error of the other two means, and what to do about it.
    ///
    /// # Errors
    /// Those of `to`.
    fn explain(&self, error: &io::Error, to: &mut dyn Write) -> io::Result<()>;
}

/// The director that listens on a socket.
#[derive(Debug)]
pub struct Remote<'a> {
    path: &'a Path,
    client: Option<Client>,
}

impl<'a> Remote<'a> {
    /// The director that listens at `path`; not connected yet.
    pub fn new(path: &'a Path) -> Self {
        Self { path, client: None }
    }
}

impl Exchange for Remote<'_> {
    fn connect(&mut self) -> io::Result<()> {
        if self.client.is_none() {
            self.client = Some(Client::connect(self.path)?);
        }
        Ok(())
    }

    fn call(
        &mut self,
        request: &Request,
        take: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        self.connect()?;
        self.client.as_mut().ok_or(io::ErrorKind::NotConnected)?.call(request, take)
    }

    fn explain(&self, error: &io::Error, to: &mut dyn Write) -> io::Result<()> {
        explain(error, self.path, to)
    }
}

/// A director in this process, at one moment.
pub struct Inside<'a> {
    /// What commands change.
    pub state: &'a mut State,
    /// The moment.
    pub now: Instant,
    /// Makes what a command changed take effect; called after each that was not refused.
    pub commit: &'a mut dyn FnMut(&mut State),
    /// Writes the text of `uvs stats`, for programs to read if so asked.
    pub stats: &'a dyn Fn(&State, bool) -> String,
}

impl fmt::Debug for Inside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("now", &self.now).finish_non_exhaustive()
    }
}

impl Inside<'_> {
    fn command(&mut self, command: &Command) -> Result<desk::Answer, ControlError> {
        let answer = desk::command(self.state, command, self.now)?;
        (self.commit)(self.state);
        Ok(answer)
    }

    fn send(&self, answer: Result<desk::Answer, ControlError>, reply: &mut dyn ReplySink) -> io::Result<()> {
        match answer {
            Ok(answer) => answer.send(reply, || self.now),
            Err(error) => reply.end(Err(error)),
        }
    }
}

impl Exchange for Inside<'_> {
    fn connect(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn call(
        &mut self,
        request: &Request,
        take: &mut dyn FnMut(Response) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut reply = Taker(take);
        match request {
            Request::Commands(commands) => commands.iter().try_for_each(|command| {
                let answer = self.command(command);
                self.send(answer, &mut reply)
            }),
            other => {
                let answer = desk::other(self.state, other, self.stats);
                if answer.is_ok() {
                    (self.commit)(self.state);
                }
                self.send(answer, &mut reply)
            }
        }
    }

    fn explain(&self, error: &io::Error, to: &mut dyn Write) -> io::Result<()> {
        // The director itself cannot fail: it is the output that did.
        writeln!(to, "can't write: {error}")
    }
}

/// Hands each response over as it comes.
struct Taker<'a>(&'a mut dyn FnMut(Response) -> io::Result<()>);

impl ReplySink for Taker<'_> {
    fn send(&mut self, response: Response) -> io::Result<()> {
        (self.0)(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::director::{Capacity, Shared};
    use crate::types::HashKey;

    #[test]
    fn a_director_inside_answers_every_kind_of_request_and_is_told_what_to_commit() {
        let capacity = Capacity { connections: 16, servers: 16, workers: 1 };
        let shared = Shared::new(capacity, [HashKey::new([1, 2]), HashKey::new([3, 4])]).unwrap();
        let mut state = State::new(shared, Instant::ZERO);
        let mut commits = 0;
        let mut commit = |_: &mut State| commits += 1;
        let stats = |_: &State, json: bool| format!("{json}\n");
        let mut inside = Inside { state: &mut state, now: Instant::ZERO, commit: &mut commit, stats: &stats };
        inside.connect().unwrap();
        let mut call = |request: &Request| {
            let mut answers = Vec::new();
            inside
                .call(request, &mut |response| {
                    answers.push(response);
                    Ok(())
                })
                .unwrap();
            assert_eq!(answers.iter().filter(|answer| answer.ends()).count(), request.answers());
            answers
        };
        let name = || "sloppy_tcp".to_owned();
        let zero = || Command::Zero { service: None };
        let missing = Command::DeleteService {
            key: crate::types::ServiceKey::Mark { family: crate::types::Family::V4, mark: 1 },
        };
        assert_eq!(
            call(&Request::Commands(vec![zero(), missing, zero()])),
            [Response::Done, Response::Failed(ControlError::NoSuchService), Response::Done]
        );
        assert_eq!(call(&Request::Set { name: name(), value: "1".to_owned() }), [Response::Done]);
        let value = Response::Text("1\n".to_owned());
        assert_eq!(call(&Request::Get { name: Some(name()) }), [value, Response::Done]);
        let text = Response::Text("true\n".to_owned());
        assert_eq!(call(&Request::Stats { json: true }), [text, Response::Done]);
        let unknown = Request::Set { name: "x".to_owned(), value: "1".to_owned() };
        assert!(matches!(call(&unknown)[..], [Response::Failed(ControlError::NoSuchSetting(_))]));
        // Whoever stops reading ends the call.
        let left =
            inside.call(&Request::Commands(vec![zero()]), &mut |_| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(left.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(commits, 6, "after each that was not refused");
    }
}
