//! Socket options that rustix has no function for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets a socket option to the bytes of `value`.
///
/// # Safety
/// `T` must be what the option takes. Where it holds pointers, they must be valid for the call.
pub(super) unsafe fn set<T>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer and length are a live value's; the caller answers for what is in it. There is no
    // safe setsockopt for options that the standard library and rustix do not know.
    let done =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a socket option that takes an `int`.
pub(super) fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: an integer holds no pointers; an option that wants another size refuses it.
    unsafe { set(fd, level, name, &value) }
}

/// Lets `bind` to port 0 leave the choice of the port to `connect` (IP_BIND_ADDRESS_NO_PORT), which goes through all
/// ports before it takes one again.
///
/// # Errors
/// Those of `setsockopt`.
pub fn bind_address_no_port(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}
