//! What a netlink socket needs beyond what `rustix` has: its own level of socket options.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Socket options of the level SOL_NETLINK that are switched on or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetlinkOption {
    /// NETLINK_EXT_ACK: errors come with a sentence.
    ExtendedErrors,
    /// NETLINK_CAP_ACK: errors do not repeat the whole request.
    ShortErrors,
    /// NETLINK_GET_STRICT_CHK: the kernel checks and honours the filters of a dump.
    StrictChecks,
}

/// Switches `option` of a netlink socket on.
///
/// # Errors
/// The kernel's own, as when the descriptor is no netlink socket.
pub fn enable(socket: impl AsFd, option: NetlinkOption) -> io::Result<()> {
    let name = match option {
        NetlinkOption::ExtendedErrors => libc::NETLINK_EXT_ACK,
        NetlinkOption::ShortErrors => libc::NETLINK_CAP_ACK,
        NetlinkOption::StrictChecks => libc::NETLINK_GET_STRICT_CHK,
    };
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the value is an int, of an int's length,
    // that outlives the call; the kernel only reads it. Neither std nor rustix has this level of options.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            name,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketType, socket};

    #[test]
    fn netlink_sockets_take_the_options_and_others_do_not() {
        let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
        for option in [NetlinkOption::ExtendedErrors, NetlinkOption::ShortErrors, NetlinkOption::StrictChecks]
        {
            enable(&netlink, option).unwrap();
            let udp = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
            assert!(enable(&udp, option).is_err());
        }
    }
}
