//! As much HTTP/1.1 as real servers and a client in the lab need: GET and HEAD, connections kept alive.

mod client;
mod server;

pub use client::{Response, get, get_from};
pub use server::{MAX_CONNECTIONS, Server};

use std::io::{self, Read};

/// Longest head of a request or response in bytes.
const MAX_HEAD: usize = 8 << 10;

/// A request's or response's head, and what was read beyond it.
struct Head {
    text: String,
    rest: Vec<u8>,
}

impl Head {
    /// The first line.
    fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// The value of the header `name`, which is in small letters.
    fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// Whether the header `Connection` holds `option`.
    fn connection(&self, option: &str) -> bool {
        self.header("connection")
            .is_some_and(|value| value.split(',').any(|word| word.trim().eq_ignore_ascii_case(option)))
    }
}

/// Reads up to the empty line that ends a head. `read` holds what was read before. Nothing where the other side
/// closes in an orderly way before its first byte.
fn read_head(stream: &mut impl Read, mut read: Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            let text = String::from_utf8(read).map_err(|_| invalid("the head is not text"))?;
            return Ok(Some(Head { text, rest }));
        }
        if read.len() > MAX_HEAD {
            return Err(invalid("the head is too long"));
        }
        let mut buffer = [0; 2048];
        match stream.read(&mut buffer) {
            Ok(0) if read.is_empty() => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => read.extend(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_are_cut_from_what_follows() {
        let mut stream = &b"st: x\r\nConnection: Keep-Alive, close\r\n\r\nmore"[..];
        let head = read_head(&mut stream, b"GET / HTTP/1.1\r\nHo".to_vec()).unwrap().unwrap();
        assert_eq!(head.first_line(), "GET / HTTP/1.1");
        assert_eq!(head.header("host"), Some("x"));
        assert!(head.connection("close") && head.connection("keep-alive") && !head.connection("alive"));
        assert_eq!(head.rest, b"more");
        assert!(read_head(&mut &b""[..], Vec::new()).unwrap().is_none());
        assert!(read_head(&mut &b"GET"[..], Vec::new()).is_err());
        assert!(read_head(&mut &[b'x'; 2 * MAX_HEAD][..], Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tail in any::<bool>()) {
            let mut bytes = bytes;
            if tail {
                bytes.extend(b"\r\n\r\n");
            }
            if let Ok(Some(head)) = read_head(&mut &bytes[..], Vec::new()) {
                let _ = (head.first_line(), head.header("host"), head.connection("close"));
            }
        }
    }
}
