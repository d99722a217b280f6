//! A program for tests that sends every frame of a queue to that queue's socket.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An attached program; detached when dropped.
#[derive(Debug)]
pub(crate) struct RedirectAll {
    map: OwnedFd,
    _link: OwnedFd,
}

impl RedirectAll {
    /// Loads the program and attaches it to an interface of the calling thread's network namespace: in the
    /// driver, or else in the stack.
    pub(crate) fn attach(interface: u32, native: bool) -> io::Result<Self> {
        // BPF_MAP_TYPE_XSKMAP, 4-byte keys and values, 64 of them; "xsks_map", by which libbpf finds it.
        let name = [u32::from_le_bytes(*b"xsks"), u32::from_le_bytes(*b"_map")];
        let map = bpf_fd(0, &[pair(17, 4), pair(4, 64), 0, pair(0, name[0]), pair(name[1], 0)])?;
        let instructions: [u64; 6] = [
            // r2 = xdp_md.rx_queue_index
            0x0000_0000_0010_1261,
            // r1 = the map, in two slots
            0x1118 | u64::from(map.as_raw_fd() as u32) << 32,
            0,
            // r3 = XDP_PASS, for a queue without a socket
            0x0000_0002_0000_03b7,
            // r0 = bpf_redirect_map(r1, r2, r3)
            0x0000_0033_0000_0085,
            // exit
            0x95,
        ];
        let license = c"Dual MIT/GPL";
        let mut load = [0_u64; 9];
        load[0] = pair(6, instructions.len() as u32);
        load[1] = instructions.as_ptr().expose_provenance() as u64;
        load[2] = license.as_ptr().expose_provenance() as u64;
        // Expected attach type: BPF_XDP.
        load[8] = pair(0, 37);
        let program = bpf_fd(5, &load)?;
        let flags = if native { 4 } else { 2 };
        let link = bpf_fd(28, &[pair(program.as_raw_fd() as u32, interface), pair(37, flags)])?;
        Ok(Self { map, _link: link })
    }

    /// Sends the queue's frames to `socket`.
    pub(crate) fn insert(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd() as u32;
        let attributes = [
            pair(self.map.as_raw_fd() as u32, 0),
            std::ptr::from_ref(&queue).expose_provenance() as u64,
            std::ptr::from_ref(&value).expose_provenance() as u64,
            0,
        ];
        bpf(2, &attributes).map(|_| ())
    }
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn bpf(command: i32, attributes: &[u64]) -> io::Result<i32> {
    // SAFETY: the attributes are alive for the call, as long as said, and hold pointers to live values only
    // (see the callers). There is no safe bpf(2).
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes) as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn bpf_fd(command: i32, attributes: &[u64]) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the command that succeeded made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
