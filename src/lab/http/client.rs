//! A small HTTP client: one request, one connection, one deadline.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::sys::sockopt::bind_address_no_port;

use super::{invalid, read_head};

/// Longest body that is read, in bytes.
const MAX_BODY: usize = 1 << 20;

/// What a server answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The status, as in 200.
    pub status: u16,
    /// The body, with whatever is not text in it replaced.
    pub body: String,
}

/// A stream whose reads and writes all end by one moment, however many there are.
struct Timed {
    stream: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A socket whose timeout is over says "would block".
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

/// Fetches `path` from the server at `address`, on a connection of its own that is closed afterwards, with
/// `host` as the name asked for. All of it takes `timeout` at most.
///
/// # Errors
/// No connection, no answer in time, or one that is not HTTP or over 1 MiB.
pub fn get(address: SocketAddr, host: &str, path: &str, timeout: Duration) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    converse(TcpStream::connect_timeout(&address, timeout)?, deadline, host, path)
}

/// As [`get`], from one of the host's own addresses.
///
/// # Errors
/// Those of [`get`], and where `source` is not the host's, or of another family.
pub fn get_from(
    source: IpAddr,
    address: SocketAddr,
    host: &str,
    path: &str,
    timeout: Duration,
) -> io::Result<Response> {
    let deadline = Instant::now() + timeout;
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    // A port that an earlier connection had would be taken for that one, by the director as by a kernel's IPVS.
    bind_address_no_port(socket.as_fd())?;
    rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    // It bounds the connecting, too (`man 7 socket`).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    rustix::net::connect(&socket, &address).map_err(|error| match error {
        rustix::io::Errno::INPROGRESS => io::ErrorKind::TimedOut.into(),
        error => io::Error::from(error),
    })?;
    converse(TcpStream::from(socket), deadline, host, path)
}

/// One request over a connection, and its answer.
fn converse(stream: TcpStream, deadline: Instant, host: &str, path: &str) -> io::Result<Response> {
    let mut stream = Timed { stream, deadline };
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: uvs-lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let head = read_head(&mut stream, Vec::new())?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut words = head.first_line().split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(invalid("the answer is not HTTP/1"));
    }
    let status =
        words.next().and_then(|status| status.parse().ok()).ok_or(invalid("the answer has no status"))?;
    let length = match head.header("content-length") {
        Some(length) => {
            Some(length.parse::<usize>().map_err(|_| invalid("the length of the answer is no number"))?)
        }
        None => None,
    };
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(invalid("the answer is too long"));
    }
    let mut body = head.rest;
    let limit = length.unwrap_or(MAX_BODY + 1);
    let missing = limit.saturating_sub(body.len()) as u64;
    (&mut stream).take(missing).read_to_end(&mut body)?;
    match length {
        Some(length) if body.len() < length => return Err(io::ErrorKind::UnexpectedEof.into()),
        None if body.len() > MAX_BODY => return Err(invalid("the answer is too long")),
        _ => body.truncate(limit),
    }
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server for one connection that answers with exactly these bytes and closes, or never closes.
    fn answer(bytes: &'static [u8], linger: bool) -> io::Result<Response> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (done, wait) = crossbeam_channel::bounded::<()>(0);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(bytes);
            if linger {
                let _ = wait.recv();
            }
        });
        let timeout = if linger { Duration::from_millis(300) } else { Duration::from_secs(10) };
        let response = get(address, "x", "/", timeout);
        drop(done);
        server.join().unwrap();
        response
    }

    #[test]
    fn answers_end_with_their_length_or_the_connection() {
        let body =
            |bytes, linger| answer(bytes, linger).map(|response| (response.status, response.body)).ok();
        let known = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
        assert_eq!(body(known, false), Some((200, "ab".to_owned())));
        assert_eq!(body(known, true), Some((200, "ab".to_owned())));
        let open = b"HTTP/1.0 404 Not Found\r\n\r\nnothing";
        assert_eq!(body(open, false), Some((404, "nothing".to_owned())));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab",
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert!(answer(bytes, false).is_err(), "{bytes:?}");
        }
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\n", true).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
