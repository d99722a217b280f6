//! Clients, and the real servers' services beside HTTP.

use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// How long one request may take, retransmissions of a few lost packets included.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A TCP connection from this very end.
pub fn connect(source: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for timeout in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, timeout, Some(PATIENCE))?;
    }
    rustix::net::bind(&socket, &source)?;
    rustix::net::connect(&socket, &target)?;
    Ok(TcpStream::from(socket))
}

/// Fetches the name of the real server.
pub fn fetch(source: SocketAddr, target: SocketAddr) -> io::Result<String> {
    let mut stream = connect(source, target)?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.trim().to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, answer)),
    }
}

/// Makes requests 0 to `count`, some at a time; gives the failures. Call it in the client's namespace.
pub fn requests(count: usize, request: impl Fn(usize) -> io::Result<()> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if let Err(error) = request(number) {
                        failures.lock().push(format!("request {number}: {error}"));
                    }
                }
            });
        }
    });
    failures.into_inner()
}

/// Asks by datagram, a few times where no answer comes, and checks that the answer is to the question. Gives the real
/// server's name.
pub fn ask(source: SocketAddr, target: SocketAddr, question: &str) -> io::Result<String> {
    let socket = UdpSocket::bind(source)?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(question.as_bytes())?;
    let mut buffer = [0; 2048];
    let got = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..got]).into_owned();
    match answer.split_once(' ') {
        Some((name, rest)) if rest == question => Ok(name.to_owned()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, answer)),
    }
}

/// Answers each datagram with `name` and the datagram, until the program ends.
pub fn serve_echo(socket: UdpSocket, name: &str, echoed: Arc<AtomicU64>) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((got, client)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), b" ", &buffer[..got]].concat();
            // Before it is sent: whoever has the answer finds it counted.
            echoed.fetch_add(1, Ordering::Relaxed);
            if socket.send_to(&answer, client).is_err() {
                echoed.fetch_sub(1, Ordering::Relaxed);
            }
        }
    });
}

/// Bytes of an upload from `from` on: no two pieces of it are alike.
fn fill(buffer: &mut [u8], from: u64) {
    for (index, word) in buffer.chunks_exact_mut(8).enumerate() {
        let number = from / 8 + index as u64;
        word.copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

const PIECE: usize = 1 << 16;

/// Reads each connection to its end, one at a time, and answers with how much there was and its hash.
pub fn serve_uploads(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (mut hasher, mut length, mut buffer) = (DefaultHasher::new(), 0_u64, vec![0; PIECE]);
            let _ = stream.set_read_timeout(Some(PATIENCE));
            while let Ok(got @ 1..) = stream.read(&mut buffer) {
                buffer[..got].iter().for_each(|byte| hasher.write_u8(*byte));
                length += got as u64;
            }
            let _ = write!(stream, "{length} {:016x}", hasher.finish());
        }
    });
}

/// Sends `length` bytes (whole pieces) and checks what the real server says it got.
pub fn upload(source: SocketAddr, target: SocketAddr, length: u64) -> io::Result<()> {
    let mut stream = connect(source, target)?;
    let (mut hasher, mut piece) = (DefaultHasher::new(), vec![0; PIECE]);
    for number in 0..length / PIECE as u64 {
        fill(&mut piece, number * PIECE as u64);
        piece.iter().for_each(|byte| hasher.write_u8(*byte));
        stream.write_all(&piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let expected = format!("{length} {:016x}", hasher.finish());
    if answer == expected { Ok(()) } else { Err(io::Error::other(format!("{answer:?}, not {expected:?}"))) }
}
