//! Clients: connections, requests, echoes.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
use uvs::wire::checksum::Sum;

/// How long one request may take: two lost SYNs long, on a machine that has other work, too.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Connects from an address of the host's; from any port, where that is 0.
///
/// # Errors
/// The kernel's own; timed out after `timeout`.
pub(crate) fn connect_from(
    source: SocketAddrV4,
    to: SocketAddrV4,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(timeout))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(timeout))?;
    rustix::net::bind(&socket, &source)?;
    rustix::net::connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A client's connection to a web server.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// As of [`connect_from`].
    pub(crate) fn connect(source: SocketAddrV4, to: SocketAddrV4, timeout: Duration) -> io::Result<Self> {
        connect_from(source, to, timeout).map(|stream| Self { stream: BufReader::new(stream) })
    }

    /// One request, and the body of its answer.
    ///
    /// # Errors
    /// The connection's, or an answer that is not 200.
    pub(crate) fn get(&mut self, last: bool) -> io::Result<String> {
        let connection = if last { "close" } else { "keep-alive" };
        let request = format!("GET / HTTP/1.1\r\nHost: load\r\nConnection: {connection}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if !line.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(format!("answered: {line:?}")));
        }
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().map_err(io::Error::other)?;
                }
                None => break,
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if last {
            // Until the server closes, so that it is the one that waits.
            let mut rest = Vec::new();
            self.stream.read_to_end(&mut rest)?;
        }
        String::from_utf8(body).map_err(io::Error::other)
    }
}

/// What came of many requests.
#[derive(Default, Debug)]
pub(crate) struct Outcome {
    /// Requests answered, by what the answer said.
    pub(crate) answers: BTreeMap<String, u64>,
    /// What went wrong.
    pub(crate) errors: Vec<String>,
}

impl Outcome {
    pub(crate) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    fn add(&mut self, result: io::Result<String>) -> bool {
        match result {
            Ok(body) => *self.answers.entry(body.trim().to_owned()).or_default() += 1,
            Err(error) => {
                self.errors.push(error.to_string());
                return false;
            }
        }
        true
    }
}

/// How much is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) to: SocketAddrV4,
    /// From each source address.
    pub(crate) requests: u64,
    /// The port of the first connection from each source; the others count up from there, so that none is used
    /// twice. 0 for any.
    pub(crate) first_port: u16,
    /// Of each connection.
    pub(crate) requests_per_connection: u64,
    pub(crate) timeout: Duration,
}

impl Load {
    /// Requests from every source at the same time, from the calling thread's namespace, until all are done or
    /// `stop` is set.
    pub(crate) fn run(&self, sources: &[Ipv4Addr], stop: &AtomicBool) -> Outcome {
        let parts: Vec<Outcome> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                sources.iter().map(|source| scope.spawn(|| self.run_one(*source, stop))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        parts.into_iter().fold(Outcome::default(), |mut sum, part| {
            part.answers.into_iter().for_each(|(body, count)| *sum.answers.entry(body).or_default() += count);
            sum.errors.extend(part.errors);
            sum
        })
    }

    fn run_one(&self, source: Ipv4Addr, stop: &AtomicBool) -> Outcome {
        let mut outcome = Outcome::default();
        let mut left = self.requests;
        let mut source = SocketAddrV4::new(source, self.first_port);
        while left > 0 && !stop.load(Ordering::Relaxed) {
            let here = left.min(self.requests_per_connection);
            left -= here;
            match Client::connect(source, self.to, self.timeout) {
                Ok(mut client) => {
                    for number in 1..=here {
                        if !outcome.add(client.get(number == here)) {
                            break;
                        }
                    }
                }
                Err(error) => outcome.errors.push(format!("connect: {error}")),
            }
            if self.first_port > 0 {
                source.set_port(source.port() + 1);
            }
        }
        outcome
    }
}

/// Answers connections with `text`, until `stop`.
pub(crate) fn serve(listener: &TcpListener, text: &str, stop: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                // A client that has gone already, or takes nothing, is the client's concern.
                stream.set_write_timeout(Some(REQUEST_TIMEOUT)).unwrap();
                let _ = stream.write_all(text.as_bytes());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// What a server of [`serve`] says.
///
/// # Errors
/// The connection's.
pub(crate) fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, REQUEST_TIMEOUT)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// One ICMP echo from the calling thread's namespace; says whether it was answered.
///
/// # Errors
/// The kernel's own, as for want of a route.
pub(crate) fn ping(to: Ipv4Addr, sequence: u16, timeout: Duration) -> io::Result<bool> {
    const HEADER: usize = 20;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(timeout))?;
    rustix::net::connect(&socket, &SocketAddrV4::new(to, 0))?;
    let identifier = (std::process::id() as u16).to_be_bytes();
    let mut message = vec![8, 0, 0, 0];
    message.extend(identifier);
    message.extend(sequence.to_be_bytes());
    message.extend(*b"uvs-e2e-echo");
    let checksum = Sum::ZERO.bytes(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; 256];
    while Instant::now() < deadline {
        let length = match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let answer = &buffer[..length];
        if answer.len() >= HEADER + 8 && answer[HEADER] == 0 && answer[HEADER + 4..] == message[4..] {
            return Ok(true);
        }
    }
    Ok(false)
}
