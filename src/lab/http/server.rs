//! A small HTTP server that says its name.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Head, read_head};

/// Most connections that are served at a time; more are closed at once.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a connection may wait for its next request, or for a reader of its response.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the accepting thread looks whether it should end.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A server that answers every GET with its name. Dropping it closes its connections and ends its threads.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    stop: AtomicBool,
    served: AtomicU64,
    /// The open connections, so that they can be closed from outside.
    connections: Mutex<HashMap<u64, TcpStream>>,
}

impl Server {
    /// Serves connections of `listener` on threads of its own.
    ///
    /// # Errors
    /// No thread, or the listener does not become non-blocking.
    pub fn start(listener: TcpListener, name: &str) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            served: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let thread = std::thread::Builder::new().name(format!("http-{name}")).spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Requests that were answered so far.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// Accepts until told to stop, then closes every connection and waits for its thread.
fn accept(listener: &TcpListener, shared: &Shared) {
    std::thread::scope(|scope| {
        let mut next = 0;
        while !shared.stop.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(listener, PollFlags::IN)];
            // Interrupted or timed out: there is nothing to accept then, and the next round looks again.
            let _ = poll(&mut fds, Some(&POLL));
            let Ok((stream, _)) = listener.accept() else { continue };
            let Some(id) = shared.admit(&stream, next) else { continue };
            next += 1;
            let worker = std::thread::Builder::new().name(format!("http-{}", shared.name));
            let served = worker.spawn_scoped(scope, move || {
                // How a connection ends is the client's business.
                let _ = serve(stream, shared);
                shared.connections.lock().remove(&id);
            });
            if let Err(error) = served {
                tracing::warn!(%error, "a connection was not served");
                shared.connections.lock().remove(&id);
            }
        }
        for stream in shared.connections.lock().values() {
            // Already closed by the other side is closed, too.
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

impl Shared {
    /// Registers a connection under `id`; nothing where there are too many.
    fn admit(&self, stream: &TcpStream, id: u64) -> Option<u64> {
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(IDLE_TIMEOUT)).ok()?;
        stream.set_write_timeout(Some(IDLE_TIMEOUT)).ok()?;
        let mut connections = self.connections.lock();
        if connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        connections.insert(id, stream.try_clone().ok()?);
        Some(id)
    }
}

/// Answers requests until one side closes.
fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut read = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let head = match read_head(&mut stream, std::mem::take(&mut read)) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return respond(&mut stream, "400 Bad Request", "bad request\n", true, false);
            }
            Err(error) => return Err(error),
        };
        let (status, close) = judge(&head);
        let with_body = !head.first_line().starts_with("HEAD ");
        let body =
            if status.starts_with("200") { format!("{}\n", shared.name) } else { format!("{status}\n") };
        // Counted first: who has the answer may look at the count.
        shared.served.fetch_add(1, Ordering::Relaxed);
        respond(&mut stream, status, &body, close, with_body)?;
        if close {
            return Ok(());
        }
        read = head.rest;
    }
    Ok(())
}

/// The answer's status, and whether the connection ends with it.
fn judge(head: &Head) -> (&'static str, bool) {
    let mut words = head.first_line().split(' ');
    let (method, version) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
    let keep = match version {
        "HTTP/1.1" => !head.connection("close"),
        "HTTP/1.0" => head.connection("keep-alive"),
        _ => return ("400 Bad Request", true),
    };
    // A body would have to be read before the next request; nobody here sends one.
    let has_body = head.header("content-length").is_some_and(|length| length != "0")
        || head.header("transfer-encoding").is_some();
    match method {
        "GET" | "HEAD" => ("200 OK", has_body || !keep),
        _ => ("405 Method Not Allowed", true),
    }
}

fn respond(stream: &mut TcpStream, status: &str, body: &str, close: bool, with_body: bool) -> io::Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
        body.len()
    );
    if with_body {
        answer.push_str(body);
    }
    stream.write_all(answer.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::get;
    use super::*;
    use std::io::Read;
    use std::net::SocketAddr;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn start() -> (Server, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (Server::start(listener, "node1").unwrap(), address)
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_request_is_answered_with_the_name() {
        let (server, address) = start();
        let response = get(address, "www.example.com", "/", PATIENCE).unwrap();
        assert_eq!((response.status, response.body.as_str()), (200, "node1\n"));
        assert_eq!(server.served(), 1);
    }

    #[test]
    fn connections_are_kept_alive_as_long_as_the_client_likes() {
        let (_server, address) = start();
        let mut stream = connect(address);
        let two = "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n";
        let answer = ask(&mut stream, &format!("{two}HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n"));
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3, "{answer}");
        assert_eq!(answer.matches("\r\n\r\nnode1\n").count(), 2, "{answer}");
        let answer = ask(&mut connect(address), "GET / HTTP/1.0\r\n\r\n");
        assert!(answer.ends_with("\r\n\r\nnode1\n"), "{answer}");
    }

    #[test]
    fn what_it_does_not_understand_is_refused() {
        let (_server, address) = start();
        for (request, status) in [
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", "405"),
            ("GET\r\n\r\n", "400"),
            ("GET / HTTP/9\r\n\r\n", "400"),
            ("\u{0}\r\n\r\n", "400"),
        ] {
            let answer = ask(&mut connect(address), request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
    }

    #[test]
    fn the_number_of_connections_is_bounded() {
        let (server, address) = start();
        let held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(address)).collect();
        let deadline = Instant::now() + PATIENCE;
        while server.shared.connections.lock().len() < MAX_CONNECTIONS && Instant::now() < deadline {
            std::thread::yield_now();
        }
        // One more is closed without an answer.
        let mut refused = connect(address);
        let mut byte = [0];
        assert!(matches!(refused.read(&mut byte), Ok(0) | Err(_)));
        drop(held);
        let deadline = Instant::now() + PATIENCE;
        while get(address, "x", "/", PATIENCE).is_err() {
            assert!(Instant::now() < deadline, "no room although all connections were closed");
        }
    }

    #[test]
    fn dropping_it_closes_its_connections_and_its_port() {
        let (server, address) = start();
        let mut idle = connect(address);
        let begin = Instant::now();
        drop(server);
        assert!(begin.elapsed() < IDLE_TIMEOUT, "waited for an idle connection");
        let mut byte = [0];
        assert!(matches!(idle.read(&mut byte), Ok(0) | Err(_)));
        assert!(get(address, "x", "/", PATIENCE).is_err());
    }
}
