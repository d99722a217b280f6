//! TUN devices: interfaces whose packets a program writes.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::interface::request;
use super::packet::VirtioHeader;

/// A TUN device of this process: what is written into it arrives at the host as if received.
///
/// It goes away with this value.
#[derive(Debug)]
pub struct TunDevice {
    device: OwnedFd,
    name: String,
}

impl TunDevice {
    /// Makes a device called `name` in the calling thread's network namespace. Packets are written without
    /// Ethernet header, behind a [`VirtioHeader`].
    ///
    /// # Errors
    /// EBUSY where a TUN device has that name, EINVAL where another interface has, ENOENT or ENODEV where the
    /// kernel has no TUN, EPERM without CAP_NET_ADMIN.
    pub fn create(name: &str) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut request = request(name)?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        // The kernel's field is 16 bits, and IFF_TUN_EXCL the highest of them.
        request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes an `ifreq` and nothing else; the borrow is exclusive and outlives
        // the call. There is no safe function for it.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { device, name: name.to_owned() })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands an IP packet to the host. Does not block.
    ///
    /// # Errors
    /// EIO where the device is down, EINVAL where the bytes are no IP packet or the header contradicts them,
    /// ENOMEM and the like.
    pub fn send(&self, header: VirtioHeader, packet: &[u8]) -> io::Result<()> {
        rustix::io::writev(&self.device, &[IoSlice::new(&header.to_bytes()), IoSlice::new(packet)])?;
        Ok(())
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
