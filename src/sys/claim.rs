//! Names that one process at a time can have in a network namespace, whatever files it shares with the others.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Those who were refused and are remembered at a time: beyond, a claim is refused without saying whose it is.
const BACKLOG: i32 = 64;

/// Holds a name until it is dropped, or its process ends, however that ends.
///
/// It is a listening socket in the abstract namespace of names, which the kernel keeps per network namespace and
/// forgets with the socket. Anybody in the network namespace may take a name there; who did is told.
#[derive(Debug)]
pub struct Claim {
    _socket: OwnedFd,
}

/// Why a name could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is somebody else's.
    #[error("taken by another process")]
    Taken {
        /// Whose, where the kernel says.
        pid: Option<u32>,
    },
    /// The kernel's own, as too many open files.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Claim {
    /// Takes `name` in the calling thread's network namespace.
    ///
    /// # Errors
    /// That somebody has it; a name over 107 bytes; the kernel's own.
    pub fn take(name: &str) -> Result<Self, ClaimError> {
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(io::Error::from)?;
        let socket = socket()?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => return Err(ClaimError::Taken { pid: holder(&address) }),
            bound => bound.map_err(io::Error::from)?,
        }
        // So that others can ask whose it is.
        rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
        Ok(Self { _socket: socket })
    }
}

fn socket() -> io::Result<OwnedFd> {
    // A connection must not wait for room among those that nobody accepts.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// The process that listens at `address`, unless it has just gone, is not to be seen from here, or was asked too often.
fn holder(address: &SocketAddrUnix) -> Option<u32> {
    let socket = socket().ok()?;
    rustix::net::connect(&socket, address).ok()?;
    let pid = peer(socket.as_fd()).ok()?.pid;
    // A process of another pid namespace has number 0 here.
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

fn peer(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointers are to live locals, and the length is that of the structure that SO_PEERCRED fills. The
    // standard library's function is not stable; rustix's has no value for a process of another pid namespace.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut peer).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(peer) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::unshare_network;

    fn name(of: &str) -> String {
        format!("uvs-test/{}/{of}", std::process::id())
    }

    fn holder_of(error: ClaimError) -> Option<u32> {
        match error {
            ClaimError::Taken { pid } => pid,
            ClaimError::System(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_name_is_one_holders_until_it_is_dropped() {
        let name = name("one");
        let claim = Claim::take(&name).unwrap();
        for _ in 0..2 {
            assert_eq!(holder_of(Claim::take(&name).unwrap_err()), Some(std::process::id()));
        }
        let _other = Claim::take(&format!("{name}0")).unwrap();
        drop(claim);
        // A process that another test is just starting may have a copy of the socket until it runs its program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while let Err(error) = Claim::take(&name) {
            assert!(std::time::Instant::now() < deadline, "{error}");
            std::thread::yield_now();
        }
        assert!(matches!(Claim::take(&"x".repeat(200)), Err(ClaimError::System(_))));
    }

    #[test]
    fn refusals_do_not_wait_however_many_there_were() {
        let name = name("many");
        let _claim = Claim::take(&name).unwrap();
        let refusals = (0..3 * BACKLOG).map(|_| holder_of(Claim::take(&name).unwrap_err()));
        let told = refusals.filter(Option::is_some).count();
        assert!((1..3 * BACKLOG as usize).contains(&told), "{told}");
    }

    #[test]
    fn every_network_namespace_has_names_of_its_own() {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("UVS_REQUIRE_ROOT").is_none_or(|value| value != "1"),
                "this is not root"
            );
            eprintln!("SKIPPED: needs root for a network namespace");
            return;
        }
        let name = name("everywhere");
        let _claim = Claim::take(&name).unwrap();
        let taken = std::thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                unshare_network().unwrap();
                Claim::take(&name).map(drop)
            });
            elsewhere.join().unwrap()
        });
        taken.unwrap();
        assert!(Claim::take(&name).is_err());
    }
}
