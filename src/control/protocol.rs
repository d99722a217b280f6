//! The messages between a program and a director, over a stream socket of the host's.
//!
//! A message is its length in bytes as 32 bits, most significant first, and that many bytes of JSON. A program sends a
//! [`Request`] and reads [`Response`]s until as many of them [end](Response::ends) as the request had commands - one
//! for a request of another kind - and may then send the next.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::command::Command;
use super::error::ControlError;
use super::listing::{ConnectionRow, DaemonRow, ServerRow, ServiceRow, Timeouts};
use super::marks::command::MarkRow;

/// The longest message, in bytes, either way.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The most commands in a request.
pub const MAX_COMMANDS: usize = 1024;
/// The most servers in a [`Response::Service`] or [`Response::Servers`].
pub const SERVERS_PER_MESSAGE: usize = 512;
/// The most connections in a [`Response::Connections`].
pub const CONNECTIONS_PER_MESSAGE: usize = 256;
/// The most rules in a [`Response::Marks`].
pub const MARKS_PER_MESSAGE: usize = 128;

/// What a program asks of a director.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Commands, to be done in order, each whatever came of those before it.
    Commands(Vec<Command>),
    /// `uvs set`
    Set {
        /// A setting's name.
        name: String,
        /// What it shall be.
        value: String,
    },
    /// `uvs get`
    Get {
        /// A setting's name; `None` means all.
        name: Option<String>,
    },
    /// `uvs stats`
    Stats {
        /// For programs to read.
        json: bool,
    },
}

impl Request {
    /// How many responses end something in the answer to it.
    pub fn answers(&self) -> usize {
        match self {
            Self::Commands(commands) => commands.len(),
            _ => 1,
        }
    }
}

/// A part of a director's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// The command is done.
    Done,
    /// It is not, and nothing has changed.
    Failed(ControlError),
    /// A listing of services begins.
    Table {
        /// The size of the connection table, for the first line.
        size: u64,
    },
    /// The next service of a listing, with its first servers.
    Service(ServiceRow),
    /// More servers of the service before.
    Servers(Vec<ServerRow>),
    /// Some more connections.
    Connections(Vec<ConnectionRow>),
    /// The answer to `-L --timeout`.
    Timeouts(Timeouts),
    /// The answer to `-L --daemon`.
    Daemons(Vec<DaemonRow>),
    /// Some more rules for marks.
    Marks(Vec<MarkRow>),
    /// Text to print as it is.
    Text(String),
}

impl Response {
    /// Whether it is the last one for a command.
    pub const fn ends(&self) -> bool {
        matches!(self, Self::Done | Self::Failed(_))
    }
}

/// Where a director's answer goes.
pub trait ReplySink {
    /// Sends one response.
    ///
    /// # Errors
    /// When the program has gone or does not read; whoever answers may stop then.
    fn send(&mut self, response: Response) -> io::Result<()>;
}

impl dyn ReplySink + '_ {
    /// Sends a service in as many parts as it takes.
    ///
    /// # Errors
    /// As [`send`](ReplySink::send).
    pub fn service(&mut self, mut service: ServiceRow) -> io::Result<()> {
        let mut rest = service.servers.split_off(service.servers.len().min(SERVERS_PER_MESSAGE));
        self.send(Response::Service(service))?;
        while !rest.is_empty() {
            let next = rest.split_off(rest.len().min(SERVERS_PER_MESSAGE));
            self.send(Response::Servers(rest))?;
            rest = next;
        }
        Ok(())
    }

    /// Sends connections as they come, some at a time.
    ///
    /// # Errors
    /// As [`send`](ReplySink::send).
    pub fn connections(&mut self, connections: impl IntoIterator<Item = ConnectionRow>) -> io::Result<()> {
        let mut connections = connections.into_iter();
        loop {
            let chunk: Vec<ConnectionRow> = connections.by_ref().take(CONNECTIONS_PER_MESSAGE).collect();
            if chunk.is_empty() {
                return Ok(());
            }
            self.send(Response::Connections(chunk))?;
        }
    }

    /// Sends rules for marks in as many parts as it takes.
    ///
    /// # Errors
    /// As [`send`](ReplySink::send).
    pub fn marks(&mut self, rows: &[MarkRow]) -> io::Result<()> {
        rows.chunks(MARKS_PER_MESSAGE).try_for_each(|part| self.send(Response::Marks(part.to_vec())))
    }

    /// Sends a text in as many parts as it takes.
    ///
    /// # Errors
    /// As [`send`](ReplySink::send).
    pub fn text(&mut self, mut text: &str) -> io::Result<()> {
        // JSON may write a byte in six.
        const PART: usize = MAX_MESSAGE / 8;
        while !text.is_empty() {
            let end = (0..=text.len().min(PART)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            let (part, rest) = text.split_at(end);
            self.send(Response::Text(part.to_owned()))?;
            text = rest;
        }
        Ok(())
    }

    /// Sends the end of a command.
    ///
    /// # Errors
    /// As [`send`](ReplySink::send).
    pub fn end(&mut self, result: Result<(), ControlError>) -> io::Result<()> {
        self.send(match result {
            Ok(()) => Response::Done,
            Err(error) => Response::Failed(error),
        })
    }
}

/// Writes one message.
///
/// # Errors
/// When it is longer than [`MAX_MESSAGE`], or the other end has gone.
pub fn write_message(to: &mut (impl Write + ?Sized), message: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {length} bytes")));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_be_bytes());
    to.write_all(&bytes)
}

/// Reads one message; `None` when the other end has closed between messages.
///
/// # Errors
/// When the other end has gone within a message, is silent for too long, or sends what is no message: of kind
/// `InvalidData` then.
pub fn read_message<T: DeserializeOwned>(from: &mut (impl Read + ?Sized)) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let mut filled = 0;
    while filled < length.len() {
        match from.read(&mut length[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ReplySink for Vec<Response> {
        fn send(&mut self, response: Response) -> io::Result<()> {
            self.push(response);
            Ok(())
        }
    }

    #[test]
    fn messages_are_read_as_written() {
        let request = Request::Set { name: "sloppy_tcp".to_owned(), value: "1".to_owned() };
        let mut bytes = Vec::new();
        write_message(&mut bytes, &request).unwrap();
        write_message(&mut bytes, &Request::Commands(vec![Command::Flush])).unwrap();
        let mut from = &bytes[..];
        assert_eq!(read_message(&mut from).unwrap(), Some(request));
        assert_eq!(read_message(&mut from).unwrap(), Some(Request::Commands(vec![Command::Flush])));
        assert_eq!(read_message::<Request>(&mut from).unwrap(), None);
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in
            [&b"\0\0"[..], b"\0\0\0\x05abc", b"\0\0\0\x03{}x", b"\xff\xff\xff\xff", b"GET / HTTP/1.0\r\n\r\n"]
        {
            assert!(read_message::<Request>(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
        let long = Request::Set { name: "x".repeat(MAX_MESSAGE), value: String::new() };
        assert!(write_message(&mut Vec::new(), &long).is_err());
    }

    #[test]
    fn long_answers_come_in_parts_that_fit() {
        let mut sink: Vec<Response> = Vec::new();
        let text = "\u{1}\u{e9}".repeat(MAX_MESSAGE / 4);
        let reply: &mut dyn ReplySink = &mut sink;
        reply.text(&text).unwrap();
        assert!(sink.len() > 1);
        let mut together = String::new();
        for response in &sink {
            write_message(&mut Vec::new(), response).unwrap();
            let Response::Text(part) = response else { panic!("{response:?}") };
            together.push_str(part);
        }
        assert_eq!(together, text);
    }
}
