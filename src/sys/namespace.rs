//! Network namespaces of threads and of processes to come.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Moves the calling thread, and no other, into a new and empty network namespace.
///
/// # Errors
/// The kernel's own: without CAP_SYS_ADMIN, permission denied.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: what makes unshare unsafe is CLONE_FILES, which would leave threads with differing tables of
    // descriptors; a new network namespace touches neither memory nor descriptors. There is no safe unshare.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

/// Moves the calling thread, and no other, into the network namespace behind `namespace`.
///
/// # Errors
/// The kernel's own: without CAP_SYS_ADMIN, permission denied.
pub fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(io::Error::from)
}

/// Starts `command` inside the network namespace behind `namespace`. The process is told to end (SIGTERM) when
/// the thread that called this ends, so that nothing outlives a killed program: call it on a thread that lives
/// as long as the process should.
///
/// # Errors
/// As of [`Command::spawn`], or the kernel's refusal to enter the namespace.
pub fn spawn_in_network(namespace: impl AsFd, command: &mut Command) -> io::Result<Child> {
    let namespace = namespace.as_fd().as_raw_fd();
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing, which is what
    // that place allows; the descriptor is open, as the caller lends it for the whole of `spawn`, and forking
    // copies it. Safe code has no way to run anything there.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(namespace, libc::CLONE_NEWNET) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn only_a_network_namespace_can_be_entered() {
        let not_one = File::open("/proc/self/ns/uts").unwrap();
        std::thread::spawn(move || assert!(enter_network(not_one.as_fd()).is_err())).join().unwrap();
    }
}
