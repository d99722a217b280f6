//! AF_PACKET sockets that move whole frames with what their sender left to a network card.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt as net_sockopt};

use super::frames::{Frame, FramePool};
use super::sockopt;

/// Most frames moved by one system call.
pub const PACKET_BATCH: usize = 64;

/// Bytes of a [`VirtioHeader`] before each frame.
const VIRTIO_HEADER: usize = 10;

/// Bytes for a frame's control message, a `tpacket_auxdata`: 16 + 24 where a word has 8 bytes.
const CONTROL: usize = 64;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` of linux/virtio_net.h.
const NEEDS_CHECKSUM: u8 = 1;

/// `struct virtio_net_hdr` of linux/virtio_net.h: what is left for a card to do. In the host's byte order, as
/// AF_PACKET and TUN have it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VirtioHeader {
    /// The checksum is to be completed.
    pub needs_checksum: bool,
    /// `VIRTIO_NET_HDR_GSO_*`, 0 for none.
    pub segmentation: u8,
    /// Bytes of headers that every segment repeats.
    pub header_length: u16,
    /// Payload bytes in each segment.
    pub segment_size: u16,
    /// Offset of the first summed byte.
    pub checksum_start: u16,
    /// Offset of the checksum field from there.
    pub checksum_offset: u16,
}

impl VirtioHeader {
    /// The header as the kernel reads it.
    pub fn to_bytes(self) -> [u8; VIRTIO_HEADER] {
        let mut bytes = [0; VIRTIO_HEADER];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = self.segmentation;
        let words = [self.header_length, self.segment_size, self.checksum_start, self.checksum_offset];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The header as the kernel wrote it.
    pub fn from_bytes(bytes: [u8; VIRTIO_HEADER]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let needs_checksum = bytes[0] & NEEDS_CHECKSUM != 0;
        Self {
            needs_checksum,
            segmentation: bytes[1],
            header_length: word(2),
            segment_size: word(4),
            checksum_start: if needs_checksum { word(6) } else { 0 },
            checksum_offset: if needs_checksum { word(8) } else { 0 },
        }
    }
}

/// What came with a received frame.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Received {
    /// The frame was longer than its chunk and was cut; its rest is lost.
    pub cut: bool,
    /// What is left for a card to do.
    pub header: VirtioHeader,
    /// The tag taken out of the frame: protocol identifier and control information.
    pub tag: Option<(u16, u16)>,
}

/// An instruction of a classic socket filter, `struct sock_filter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip where a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip where it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// `ret #0`: no frame passes.
const NOTHING: FilterInstruction =
    FilterInstruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jump_true: 0, jump_false: 0, operand: 0 };

/// Which frames a socket receives.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum PacketFilter {
    /// All.
    #[default]
    Everything,
    /// Those that a classic BPF program passes.
    Classic(Vec<FilterInstruction>),
    /// Those that pass a program which somebody else attaches to the socket; none before.
    Attached,
}

/// A socket that gets every frame that arrives on one Ethernet interface, and sends there.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket on an interface. It receives nothing before [`listen`](Self::listen).
    ///
    /// `receive_buffer` is how many bytes of frames may wait, counted as the kernel does (a small frame is
    /// about 768). `bypass_queueing` skips the interface's queueing discipline, but then the kernel drops what
    /// it would have to cut into segments itself.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV where the interface does not exist, and `Unsupported` where its frames
    /// are not Ethernet's.
    pub fn open(interface: u32, receive_buffer: usize, bypass_queueing: bool) -> io::Result<Self> {
        // Protocol 0: an unbound socket with a protocol gets frames of every interface from the start.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let this = Self { socket };
        let fd = this.socket.as_fd();
        this.filter(&[NOTHING])?;
        sockopt::set_int(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        sockopt::set_int(fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // What we send would otherwise come back as received.
        sockopt::set_int(fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        if bypass_queueing {
            sockopt::set_int(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
        }
        // Without CAP_NET_ADMIN the system's limit applies.
        if net_sockopt::set_socket_recv_buffer_size_force(&this.socket, receive_buffer).is_err() {
            net_sockopt::set_socket_recv_buffer_size(&this.socket, receive_buffer)?;
        }
        // Room for a batch of the largest frames.
        let send_buffer = PACKET_BATCH * 2 * 65_536;
        let forced = sockopt::set_int(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, send_buffer as i32);
        if forced.is_err() {
            net_sockopt::set_socket_send_buffer_size(&this.socket, send_buffer)?;
        }
        this.bind(interface)?;
        this.check_is_ethernet()?;
        Ok(this)
    }

    /// Shares the interface's frames with the other sockets in `group`, each flow going to one of them, and
    /// starts receiving what passes `filter`. A group's sockets must all be on one interface.
    ///
    /// Nothing is received twice or unfiltered in between: until here, no frame passes.
    ///
    /// # Errors
    /// EINVAL for a group that has sockets on another interface, or while the interface is down (try again
    /// when it is up); EINVAL also for a filter that the kernel refuses.
    pub fn listen(&self, group: Option<u16>, filter: &PacketFilter) -> io::Result<()> {
        if let Some(group) = group {
            let argument = i32::from(group) | (libc::PACKET_FANOUT_HASH as i32) << 16;
            match sockopt::set_int(self.socket.as_fd(), libc::SOL_PACKET, libc::PACKET_FANOUT, argument) {
                // In the group already: an earlier call failed later on.
                Err(error) if error.raw_os_error() == Some(libc::EALREADY) => {}
                joined => joined?,
            }
        }
        match filter {
            PacketFilter::Classic(filter) => self.filter(filter),
            PacketFilter::Everything => {
                sockopt::set_int(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
            }
            PacketFilter::Attached => Ok(()),
        }
    }

    /// Replaces the filter.
    ///
    /// # Errors
    /// EINVAL for a program that the kernel refuses, or one that is empty or too long.
    pub fn filter(&self, filter: &[FilterInstruction]) -> io::Result<()> {
        let mut instructions: Vec<libc::sock_filter> = filter
            .iter()
            .map(|i| libc::sock_filter { code: i.code, jt: i.jump_true, jf: i.jump_false, k: i.operand })
            .collect();
        let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
        // SAFETY: the option takes a `sock_fprog`, whose pointer and length are the live vector's. There is no
        // safe way to attach a filter.
        unsafe { sockopt::set(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program) }
    }

    fn bind(&self, interface: u32) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: i32::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the pointer and length are the live address's. rustix has no link-layer addresses.
        let done =
            unsafe { libc::bind(self.socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn check_is_ethernet(&self) -> io::Result<()> {
        let mut address = MaybeUninit::<libc::sockaddr_ll>::zeroed();
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, the size of the live buffer. As for `bind`.
        let done = unsafe {
            libc::getsockname(self.socket.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroed before the call, and any bytes are a valid address.
        match unsafe { address.assume_init() }.sll_hatype {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "not an Ethernet interface")),
        }
    }

    /// Receives up to [`PACKET_BATCH`] frames into `slots`, empty frames of the pool's, without blocking. Sets
    /// the lengths of those received and says in `received` what came with each.
    ///
    /// # Errors
    /// `WouldBlock` where nothing waits; ENETDOWN once after the interface went down.
    pub fn receive(
        &self,
        frames: &FramePool,
        slots: &mut [Frame],
        received: &mut [Received; PACKET_BATCH],
    ) -> io::Result<usize> {
        let count = slots.len().min(PACKET_BATCH);
        let mut headers = [[0_u8; VIRTIO_HEADER]; PACKET_BATCH];
        let mut controls = [Control([0; CONTROL]); PACKET_BATCH];
        let mut parts = [[EMPTY_PART; 2]; PACKET_BATCH];
        let mut messages = [EMPTY_MESSAGE; PACKET_BATCH];
        for (index, slot) in slots.iter_mut().take(count).enumerate() {
            parts[index] = [part(&mut headers[index]), part(frames.spare_mut(slot))];
            let message = &mut messages[index].msg_hdr;
            message.msg_iov = parts[index].as_mut_ptr();
            message.msg_iovlen = 2;
            message.msg_control = controls[index].0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL as _;
        }
        // SAFETY: each message points to its own parts and control buffer, all alive and borrowed by nobody
        // else during the call: `headers`, `controls` and `parts` are locals, the chunks belong to `slots`,
        // exclusively borrowed. rustix has no recvmmsg.
        let got = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?.min(count);
        for (index, slot) in slots.iter_mut().take(got).enumerate() {
            let message = &messages[index];
            frames.set_len(slot, (message.msg_len as usize).saturating_sub(VIRTIO_HEADER));
            #[allow(clippy::unnecessary_cast)] // musl has another type for it
            let control_length = (message.msg_hdr.msg_controllen as usize).min(CONTROL);
            let control = &controls[index].0[..control_length];
            received[index] = Received {
                cut: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
                header: VirtioHeader::from_bytes(headers[index]),
                tag: tag_of(control),
            };
        }
        Ok(got)
    }

    /// Sends up to [`PACKET_BATCH`] frames, without blocking; says how many of the first went.
    ///
    /// # Errors
    /// What kept the first from being sent: `WouldBlock` for want of buffer, EMSGSIZE where it is longer than
    /// the interface takes, EINVAL where its header contradicts it, ENOBUFS where the interface dropped it,
    /// ENETDOWN or ENXIO where the interface is down.
    pub fn send(&self, frames: &FramePool, queue: &[(Frame, VirtioHeader)]) -> io::Result<usize> {
        let count = queue.len().min(PACKET_BATCH);
        let mut headers = [[0_u8; VIRTIO_HEADER]; PACKET_BATCH];
        let mut parts = [[EMPTY_PART; 2]; PACKET_BATCH];
        let mut messages = [EMPTY_MESSAGE; PACKET_BATCH];
        for (index, (frame, header)) in queue.iter().take(count).enumerate() {
            headers[index] = header.to_bytes();
            let bytes = frames.bytes(frame);
            let iov_base = bytes.as_ptr().cast_mut().cast();
            parts[index] = [part(&mut headers[index]), libc::iovec { iov_base, iov_len: bytes.len() }];
            messages[index].msg_hdr.msg_iov = parts[index].as_mut_ptr();
            messages[index].msg_hdr.msg_iovlen = 2;
        }
        // SAFETY: each message points to its own parts, alive during the call, in which the kernel only reads
        // what they point to: a local header and a chunk borrowed shared by way of `queue`. rustix's sendmmsg
        // wants a vector of borrowed slices per call.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        Ok(usize::try_from(sent).map_err(|_| io::Error::last_os_error())?.min(count))
    }

    /// Frames that the kernel dropped for want of room in the receive buffer since the last call.
    ///
    /// # Errors
    /// The kernel's own; does not happen on an open socket.
    pub fn take_drops(&self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, the size of the live value. There is no safe
        // getsockopt for this option.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut statistics).cast(),
                &raw mut length,
            )
        };
        if done == 0 { Ok(u64::from(statistics.tp_drops)) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A control buffer, aligned as its messages' headers are.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

const EMPTY_PART: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

// SAFETY: integers and null pointers. The C library's structure has private padding on some targets, so that
// there is no writing it out.
const EMPTY_MESSAGE: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// The VLAN tag in a frame's control messages: a `cmsghdr`, and in it a `tpacket_auxdata`.
fn tag_of(control: &[u8]) -> Option<(u16, u16)> {
    let word = |at: usize| control.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let half = |at: usize| control.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
    const LEVEL: usize = size_of::<usize>();
    const DATA: usize = LEVEL + 8;
    if word(LEVEL)? != libc::SOL_PACKET as u32 || word(LEVEL + 4)? != libc::PACKET_AUXDATA as u32 {
        return None;
    }
    let status = word(DATA + std::mem::offset_of!(libc::tpacket_auxdata, tp_status))?;
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tci = half(DATA + std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci))?;
    let protocol = half(DATA + std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tpid))?;
    let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    Some((if known { protocol } else { libc::ETH_P_8021Q as u16 }, tci))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_headers_survive_the_way_through_bytes() {
        let header = VirtioHeader {
            needs_checksum: true,
            segmentation: 1,
            header_length: 66,
            segment_size: 1448,
            checksum_start: 34,
            checksum_offset: 16,
        };
        assert_eq!(VirtioHeader::from_bytes(header.to_bytes()), header);
        // DATA_VALID and stale offsets say nothing.
        let bytes = [2, 0, 0, 0, 0, 0, 9, 9, 9, 9];
        assert_eq!(VirtioHeader::from_bytes(bytes), VirtioHeader::default());
    }

    #[test]
    fn tags_are_found_in_auxiliary_data_and_nowhere_else() {
        let mut control = Vec::new();
        control.extend_from_slice(&36_usize.to_ne_bytes());
        control.extend_from_slice(&libc::SOL_PACKET.to_ne_bytes());
        control.extend_from_slice(&libc::PACKET_AUXDATA.to_ne_bytes());
        let status = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        for word in [status, 60, 60] {
            control.extend_from_slice(&word.to_ne_bytes());
        }
        for half in [14_u16, 14, 0x2007, 0x88a8] {
            control.extend_from_slice(&half.to_ne_bytes());
        }
        assert_eq!(tag_of(&control), Some((0x88a8, 0x2007)));
        for cut in 0..control.len() {
            assert_eq!(tag_of(&control[..cut]), None, "cut to {cut}");
        }
        let status = size_of::<usize>() + 8;
        control[status..status + 4].copy_from_slice(&libc::TP_STATUS_VLAN_VALID.to_ne_bytes());
        assert_eq!(tag_of(&control), Some((0x8100, 0x2007)));
        control[status..status + 4].fill(0);
        assert_eq!(tag_of(&control), None);
    }
}
