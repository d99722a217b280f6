//! The way back to the host: frames that turned out not to be ours arrive there through a TUN device.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use tracing::warn;

use super::checksum;
use crate::director::Offload;
use crate::sys::frames::{Frame, FramePool};
use crate::sys::interface::InterfaceControl;
use crate::sys::packet::VirtioHeader;
use crate::sys::tun::TunDevice;

/// The device's name is this and a number.
const NAME: &str = "uvs";

/// Names tried, from `uvs0` on: there may be other directors in the network namespace.
const NAMES: u32 = 64;

/// MTU asked for: packets that were merged on receiving are larger than any interface's.
const MTU: u32 = 65_535;

/// The device's own address, of loopback's, so that it means nothing to anybody. Without any, the host would take IPv4
/// packets from no source at all where it filters them, however loosely (`__fib_validate_source`).
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 117, 118, 115);

/// What became of frames for the host.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HostStatistics {
    /// Packets handed over.
    pub delivered: u64,
    /// Frames that hold neither IPv4 nor IPv6, which the device does not carry.
    pub not_ip: u64,
    /// Packets that the kernel did not take, as when the device is down.
    pub failed: u64,
}

/// A TUN device through which the host gets packets as if it had received them.
///
/// The host answers by its own routes; the device only ever carries packets in. It goes away with this value.
#[derive(Debug)]
pub struct HostPort {
    device: TunDevice,
    control: InterfaceControl,
    statistics: HostStatistics,
}

impl HostPort {
    /// Makes the device in the calling thread's network namespace, under the first free name from `uvs0` on,
    /// and brings it up, without a check of where packets come from. What of the settings fails is logged.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN, ENOENT or ENODEV where the kernel has no TUN, EBUSY where all 64 names are
    /// taken.
    pub fn open() -> io::Result<Self> {
        let device = create()?;
        let name = device.name();
        let control = InterfaceControl::new()?;
        if let Err(error) = control.set_mtu(name, MTU) {
            warn!(%error, device = name, "MTU {MTU} was refused; large packets may not reach the host");
        }
        // Before it is up, so that the host says nothing on it either.
        set("ipv4", name, "rp_filter", "0");
        set("ipv6", name, "disable_ipv6", "0");
        set("ipv6", name, "accept_ra", "0");
        // No link-local address: nobody is there to talk to.
        set("ipv6", name, "addr_gen_mode", "1");
        if let Err(error) = control.set_address(name, ADDRESS) {
            warn!(%error, device = name, "{ADDRESS} was refused: the host will ignore IPv4 packets where it filters by source");
        }
        control.bring_up(name)?;
        // The stricter of the device's and everybody's setting counts.
        let everybody = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter");
        if everybody.is_ok_and(|value| value.trim() == "1") {
            warn!(
                device = name,
                "net.ipv4.conf.all.rp_filter is 1 (strict): the host will ignore most IPv4 packets handed to it"
            );
        }
        Ok(Self { device, control, statistics: HostStatistics::default() })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Takes the frame's link header and tags off and hands the packet to the host, with what its sender left
    /// to a network card. The frame goes back to the pool in any case. Does not block.
    pub fn send(&mut self, frames: &mut FramePool, frame: Frame, offload: Offload) {
        let bytes = frames.bytes(&frame);
        match checksum::ethernet_header(bytes) {
            Some((link, 0x0800 | 0x86dd)) => {
                match self.device.send(without_link(offload, link), &bytes[link..]) {
                    Ok(()) => self.statistics.delivered += 1,
                    Err(_) => self.statistics.failed += 1,
                }
            }
            _ => self.statistics.not_ip += 1,
        }
        frames.free(frame);
    }

    /// Counters since the device was made.
    pub fn statistics(&self) -> HostStatistics {
        self.statistics
    }

    /// Whether the device still works.
    ///
    /// # Errors
    /// ENODEV where it was deleted, ENETDOWN where it was taken down.
    pub fn health(&self) -> io::Result<()> {
        self.control.check(self.control.index(self.name())?)
    }
}

fn create() -> io::Result<TunDevice> {
    for number in 0..NAMES {
        match TunDevice::create(&format!("{NAME}{number}")) {
            // Busy: another TUN device. Invalid: an interface of another kind.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINVAL | libc::EEXIST)) => {
            }
            created => return created,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// What is left for a card to do, for a packet whose `link` first bytes were taken off.
fn without_link(offload: Offload, link: usize) -> VirtioHeader {
    let link = link as u16;
    let mut header = VirtioHeader::from(offload);
    if header.needs_checksum {
        header.checksum_start = header.checksum_start.saturating_sub(link);
    }
    if header.segmentation != 0 {
        header.header_length = header.header_length.saturating_sub(link);
    }
    header
}

/// Writes a setting of an interface; the file is that of the calling thread's network namespace.
fn set(family: &str, device: &str, setting: &str, value: &str) {
    let path = format!("/proc/sys/net/{family}/conf/{device}/{setting}");
    match fs::write(&path, value) {
        // No such family in this kernel: nothing to set.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => warn!(%error, "could not set {path} to {value}"),
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_the_link_header() {
        let offload = Offload {
            needs_checksum: true,
            checksum_start: 38,
            checksum_offset: 16,
            segmentation: 1,
            header_length: 58,
            segment_size: 1448,
        };
        let header = without_link(offload, 18);
        assert_eq!((header.checksum_start, header.checksum_offset), (20, 16));
        assert_eq!((header.header_length, header.segment_size), (40, 1448));
        assert_eq!(without_link(Offload::default(), 14), VirtioHeader::default());
    }
}
