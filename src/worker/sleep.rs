//! Sleeping until a socket has something.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Most descriptors slept on; ports beyond wait for the longest sleep to end.
const MAX_DESCRIPTORS: usize = 64;

/// Sleeps until one of the descriptors is readable, a signal comes, or `longest` has passed.
///
/// # Errors
/// The kernel's own, as for a lack of memory.
pub(super) fn until_readable<'fd>(
    descriptors: impl Iterator<Item = BorrowedFd<'fd>>,
    longest: Duration,
) -> io::Result<()> {
    let poll_for = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
    let mut polled: Vec<PollFd<'fd>> = descriptors.take(MAX_DESCRIPTORS).map(poll_for).collect();
    let longest = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
    match poll(&mut polled, Some(&longest)) {
        Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => (),
        Err(error) => return Err(error.into()),
    }
    // A socket in error is readable at once, for ever: without a pause, an interface that is down burns a core.
    let broken = |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
    if polled.iter().any(broken) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
