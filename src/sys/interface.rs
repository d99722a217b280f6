//! Network interfaces by the old control calls: flags, MTU, bringing one up.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// ETHTOOL_GCHANNELS of linux/ethtool.h: how many queues are in use.
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct EthtoolChannels {
    command: u32,
    /// What there could be: receive, transmit, other, combined.
    most: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

/// A socket to ask about interfaces; it belongs to the network namespace it was made in.
#[derive(Debug)]
pub struct InterfaceControl {
    socket: OwnedFd,
}

impl InterfaceControl {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's own, typically too many open files.
    pub fn new() -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// The index of the interface called `name`.
    ///
    /// # Errors
    /// ENODEV where there is none.
    pub fn index(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    /// The name of an interface, which may change.
    ///
    /// # Errors
    /// ENODEV where there is none.
    pub fn name(&self, index: u32) -> io::Result<String> {
        Ok(rustix::net::netdevice::index_to_name(&self.socket, index)?)
    }

    /// Whether the interface is up.
    ///
    /// # Errors
    /// ENODEV where there is none.
    pub fn is_up(&self, index: u32) -> io::Result<bool> {
        Ok(self.flags(&self.name(index)?)? & libc::IFF_UP != 0)
    }

    /// Fails where an interface cannot carry frames.
    ///
    /// # Errors
    /// ENODEV where it is gone, ENETDOWN where it is down.
    pub fn check(&self, index: u32) -> io::Result<()> {
        if self.is_up(index)? { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENETDOWN)) }
    }

    /// Brings the interface called `name` up.
    ///
    /// # Errors
    /// EPERM, ENODEV, and the driver's own.
    pub fn bring_up(&self, name: &str) -> io::Result<()> {
        let flags = self.flags(name)? | libc::IFF_UP;
        let mut request = request(name)?;
        // The kernel's field is a short with the low 16 flags.
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        self.call(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets the MTU, in bytes, of the interface called `name`.
    ///
    /// # Errors
    /// EINVAL beyond what the driver takes, EPERM, ENODEV.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_mtu = i32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.call(libc::SIOCSIFMTU, &mut request)
    }

    /// Gives the interface called `name`, which is a point-to-point one, this IPv4 address, alone in its network.
    ///
    /// # Errors
    /// EPERM, ENODEV; too many open files; a kernel without IPv4.
    pub fn set_address(&self, name: &str, address: Ipv4Addr) -> io::Result<()> {
        let mut request = request(name)?;
        // As in a `sockaddr_in`, behind the port.
        let mut sa_data = [0; 14];
        for (to, from) in sa_data[2..6].iter_mut().zip(address.octets()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_addr = libc::sockaddr { sa_family: libc::AF_INET as u16, sa_data };
        // Addresses are their family's: only its sockets take this.
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Self { socket }.call(libc::SIOCSIFADDR, &mut request)
    }

    /// Receive queues in use of the interface called `name`, which may be fewer than it has; none where its driver does
    /// not say.
    ///
    /// # Errors
    /// ENODEV where there is no such interface.
    pub fn receive_queues(&self, name: &str) -> io::Result<Option<u32>> {
        let mut channels = EthtoolChannels { command: ETHTOOL_GCHANNELS, ..EthtoolChannels::default() };
        let mut request = request(name)?;
        request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut channels).cast();
        match self.call(libc::SIOCETHTOOL, &mut request) {
            Ok(()) => Ok(Some(channels.receive.saturating_add(channels.combined))),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn flags(&self, name: &str) -> io::Result<i32> {
        let mut request = request(name)?;
        self.call(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: the call that succeeded filled this field of the union. The kernel's interface is a union.
        Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    fn call(&self, what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: each call used here reads and writes an `ifreq`, and SIOCETHTOOL also what `ifru_data` points to: a
        // live local of the caller's, of the layout that its command asks for. The borrow is exclusive and outlives
        // the call. There are no safe functions for them.
        let done = unsafe { libc::ioctl(self.socket.as_raw_fd(), what, std::ptr::from_mut(request)) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// An empty request about the interface called `name`.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    let mut ifr_name = [0 as libc::c_char; libc::IFNAMSIZ];
    // One byte stays for the terminating zero.
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_slave: [0; libc::IFNAMSIZ] };
    Ok(libc::ifreq { ifr_name, ifr_ifru })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_and_nonsense_is_not() {
        let control = InterfaceControl::new().unwrap();
        let index = control.index("lo").unwrap();
        assert_eq!(control.name(index).unwrap(), "lo");
        assert!(control.is_up(index).is_ok());
        assert_eq!(control.receive_queues("lo").unwrap(), None, "it has no driver to ask");
        assert_eq!(control.receive_queues("nosuch").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(control.check(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        for name in ["", "a-name-that-is-too-long", "nul\0"] {
            assert_eq!(control.flags(name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
