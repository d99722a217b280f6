//! The steering program: which frames are the director's.
//!
//! One generator writes all three flavours, so that they cannot disagree about a frame: an interface's guard
//! drops exactly what the raw sockets' filter lets through. The frame is read with the kernel's `load_bytes`
//! helpers, which check bounds themselves and exist for all three kinds.
//!
//! Taken are unicast frames (by their destination's group bit), with up to [`MAX_VLAN_TAGS`] tags, whose IP
//! destination has a matching key: protocol and port first, then the protocol's key for every port, then the
//! protocol's for a network around it, then the address's key for everything. Packets that do not show their ports
//! (fragments, and IPv6 packets with more than [`MAX_IPV6_EXTENSIONS`] extension headers) are taken where the address, or
//! a network around it, has any key. First fragments show theirs, but later ones have to go the same way. So are ICMP
//! errors of the types that IPVS forwards, which may be about a packet that came from there; all other ICMP is the host's.
//! What has no key by its destination is looked up by its source in the same way (protocol and port, every port; what does
//! not show its ports, and ICMP errors: any key), if there is any key of a source: replies of real servers behind NAT. What
//! is cut off or unknown passes.
//!
//! Cost of the XDP flavour, measured by the kernel (`BPF_PROG_TEST_RUN`, a million runs, best of five; Linux 6.18
//! with JIT on a shared 2 GHz core, 1000 keys; about 5 ns of it the measuring): 63 ns for IPv4 TCP and 61 ns for IPv6
//! TCP to a key, 81 ns behind two VLAN tags, 84 ns into a network, 97 ns behind three IPv6 extension headers; 106 ns for
//! TCP that passes (four look-ups), 14 ns for ARP. As long as no key is of a source, that is what it was before there were
//! such keys (67, 64, 112 ns in the same hour); with one, TCP that passes takes 150 ns (two more look-ups), an answer of a
//! real server behind NAT 133 ns. The other flavours are within 10 % of that. The test `cost_of_a_frame` prints these.

use std::os::fd::{AsFd, BorrowedFd};

use super::key::{
    ADDRESS_AT, FAMILY_AT, FAMILY_V4, FAMILY_V6, KEY_BYTES, NETWORK_ALL_BITS, NETWORK_BYTES, PACKETS_AT,
    PACKETS_EVERYTHING, PACKETS_WITHOUT_PORTS, PORT_AT, SOURCE,
};
use super::table::KeyTable;
use crate::sys::bpf::Condition::{AnyBitOf, Equal, Less, NotEqual};
use crate::sys::bpf::Register::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};
use crate::sys::bpf::{Assembler, BpfError, Code, Label, Operation, Program, ProgramKind, Register, Size};
use crate::types::Protocol;
use crate::wire::{icmp, icmpv6};

/// VLAN tags that are looked past. Where the network card or the kernel has taken the outer tag off a frame,
/// one more fits.
pub const MAX_VLAN_TAGS: usize = 2;

/// IPv6 extension headers that are looked past.
pub const MAX_IPV6_EXTENSIONS: i32 = 8;

/// What the program does with the frames it takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Flavour<'maps> {
    /// Gives them to the AF_XDP socket in this map at the receiving queue's index, and drops them where there is
    /// none: the host would reset the clients' connections.
    Xdp { sockets: BorrowedFd<'maps> },
    /// Drops them, at TCX: after raw sockets saw them.
    Guard,
    /// Lets only them into a raw socket.
    Filter,
}

// Helpers, `enum bpf_func_id`.
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_SKB_LOAD_BYTES: i32 = 26;
const HELPER_REDIRECT_MAP: i32 = 51;
const HELPER_XDP_LOAD_BYTES: i32 = 189;

// Results.
/// `XDP_DROP`
pub(super) const XDP_DROP: i32 = 1;
/// `XDP_PASS`
pub(super) const XDP_PASS: i32 = 2;
/// `TCX_DROP`
pub(super) const TCX_DROP: i32 = 2;
/// `TCX_NEXT`: whoever else is attached decides.
pub(super) const TCX_NEXT: i32 = -1;
/// Keep this many bytes of the frame: all.
pub(super) const FILTER_KEEP_ALL: i32 = i32::MAX;
/// Keep nothing.
pub(super) const FILTER_KEEP_NONE: i32 = 0;

/// `rx_queue_index` in `struct xdp_md`.
const XDP_MD_QUEUE: i16 = 16;

const ETHERNET_BYTES: i32 = 14;
const VLAN_BYTES: i32 = 4;
const IPV4_BYTES: i32 = 20;
const IPV6_BYTES: i32 = 40;
const EXTENSION_BYTES: i32 = 8;
const PORTS_BYTES: i32 = 4;
const ICMP_TYPE_BYTES: i32 = 1;

const ICMP: i32 = 1;
const ICMPV6: i32 = 58;
/// Types of the errors that are taken, from the first to the last of each range.
const ICMP_ERRORS: &[[u8; 2]] =
    &[[icmp::DESTINATION_UNREACHABLE, icmp::SOURCE_QUENCH], [icmp::TIME_EXCEEDED, icmp::TIME_EXCEEDED]];
const ICMPV6_ERRORS: &[[u8; 2]] = &[[icmpv6::DESTINATION_UNREACHABLE, icmpv6::PARAMETER_PROBLEM]];

const HOP_BY_HOP_OPTIONS: i32 = 0;
const ROUTING: i32 = 43;
const FRAGMENT: i32 = 44;
const DESTINATION_OPTIONS: i32 = 60;

/// The key on the stack: ends at its top, so that the address is aligned for moves of 8 bytes.
const KEY: i16 = -(KEY_BYTES as i16);
/// The header being read, on the stack below the key; 8-aligned, and so is the address in an IPv6 header.
const HEADER: i16 = -64;

const FAMILY: i16 = KEY + FAMILY_AT as i16;
const ADDRESS: i16 = KEY + ADDRESS_AT as i16;
const PACKETS: i16 = KEY + PACKETS_AT as i16;
const PORT: i16 = KEY + PORT_AT as i16;
/// A network's key: the same, with the number of bits that count in front of it, which never changes.
const NETWORK: i16 = -(NETWORK_BYTES as i16);

// What the kept registers hold.
/// The context.
const CONTEXT: Register = R6;
/// Where in the frame the next header begins.
const OFFSET: Register = R7;
/// What the next header is: EtherType (as it is in memory) or IP protocol number.
const NEXT: Register = R8;
/// Extension headers that may still come.
const EXTENSIONS: Register = R9;

struct Labels {
    ipv4: Label,
    ipv6: Label,
    transport: Label,
    icmp: Label,
    icmpv6: Label,
    everything: Label,
    without_ports: Label,
    take: Label,
    pass: Label,
}

struct Generator<'maps> {
    asm: Assembler<'maps>,
    keys: BorrowedFd<'maps>,
    networks: BorrowedFd<'maps>,
    sources: BorrowedFd<'maps>,
    flavour: Flavour<'maps>,
    labels: Labels,
}

/// Loads this flavour of the program over `keys`.
pub(super) fn load(keys: &KeyTable, flavour: Flavour<'_>) -> Result<Program, BpfError> {
    let (kind, name) = match flavour {
        Flavour::Xdp { .. } => (ProgramKind::Xdp, "uvs_steer"),
        Flavour::Guard => (ProgramKind::Tcx, "uvs_guard"),
        Flavour::Filter => (ProgramKind::SocketFilter, "uvs_filter"),
    };
    Program::load(kind, name, &generate(keys, flavour)?)
}

/// A constant as it is in memory when the network sent it.
const fn network(value: u16) -> i32 {
    value.to_be() as i32
}

fn generate<'maps>(keys: &'maps KeyTable, flavour: Flavour<'maps>) -> Result<Code<'maps>, BpfError> {
    let mut asm = Assembler::new();
    let labels = Labels {
        ipv4: asm.label("ipv4"),
        ipv6: asm.label("ipv6"),
        transport: asm.label("transport"),
        icmp: asm.label("icmp"),
        icmpv6: asm.label("icmpv6"),
        everything: asm.label("everything"),
        without_ports: asm.label("without_ports"),
        take: asm.label("take"),
        pass: asm.label("pass"),
    };
    let (sources, networks, keys) = (keys.sources().as_fd(), keys.networks().as_fd(), keys.map().as_fd());
    let mut generator = Generator { asm, keys, networks, sources, flavour, labels };
    generator.ethernet();
    generator.ipv4();
    generator.ipv6();
    generator.transport();
    generator.results();
    Ok(generator.asm.finish()?)
}

impl Generator<'_> {
    /// Copies `bytes` of the frame from `OFFSET` on to `HEADER`; goes to `short` where there are fewer.
    fn read(&mut self, bytes: i32, short: Label) {
        let asm = &mut self.asm;
        asm.set(R1, CONTEXT);
        asm.set(R2, OFFSET);
        asm.set(R3, R10);
        asm.alu(Operation::Add, R3, i32::from(HEADER));
        asm.set(R4, bytes);
        asm.call(match self.flavour {
            Flavour::Xdp { .. } => HELPER_XDP_LOAD_BYTES,
            Flavour::Guard | Flavour::Filter => HELPER_SKB_LOAD_BYTES,
        });
        asm.jump_if(R0, NotEqual, 0, short);
    }

    /// Looks the key up; goes to `take` where it is there.
    fn look_up(&mut self) {
        self.asm.load_map(R1, self.keys);
        self.look_up_at(KEY);
    }

    /// Looks the key, which has no port, up among the networks; goes to `take` where its address is in one.
    fn look_up_network(&mut self) {
        self.asm.load_map(R1, self.networks);
        self.look_up_at(NETWORK);
    }

    fn look_up_at(&mut self, key: i16) {
        let asm = &mut self.asm;
        asm.set(R2, R10);
        asm.alu(Operation::Add, R2, i32::from(key));
        asm.call(HELPER_MAP_LOOKUP);
        asm.jump_if(R0, NotEqual, 0, self.labels.take);
    }

    /// Ethernet and VLAN tags. The key's address is zero after this.
    fn ethernet(&mut self) {
        self.asm.set(CONTEXT, R1);
        self.asm.set(OFFSET, 0);
        self.read(ETHERNET_BYTES, self.labels.pass);
        // The group bit: broadcast and multicast are the host's.
        self.asm.load(Size::Byte, R1, R10, HEADER);
        self.asm.jump_if(R1, AnyBitOf, 1, self.labels.pass);
        self.asm.load(Size::Half, NEXT, R10, HEADER + 12);
        self.asm.set(OFFSET, ETHERNET_BYTES);
        self.asm.store_constant(Size::Double, R10, ADDRESS, 0);
        self.asm.store_constant(Size::Double, R10, ADDRESS + 8, 0);
        self.asm.store_constant(Size::Word, R10, NETWORK, NETWORK_ALL_BITS as i32);
        for _ in 0..MAX_VLAN_TAGS {
            self.asm.jump_if(NEXT, Equal, network(0x0800), self.labels.ipv4);
            self.asm.jump_if(NEXT, Equal, network(0x86dd), self.labels.ipv6);
            let tagged = self.asm.label("tagged");
            self.asm.jump_if(NEXT, Equal, network(0x8100), tagged);
            self.asm.jump_if(NEXT, NotEqual, network(0x88a8), self.labels.pass);
            self.asm.bind(tagged);
            self.read(VLAN_BYTES, self.labels.pass);
            self.asm.load(Size::Half, NEXT, R10, HEADER + 2);
            self.asm.alu(Operation::Add, OFFSET, VLAN_BYTES);
        }
        self.asm.jump_if(NEXT, Equal, network(0x86dd), self.labels.ipv6);
        self.asm.jump_if(NEXT, NotEqual, network(0x0800), self.labels.pass);
    }

    fn ipv4(&mut self) {
        let labels = (self.labels.ipv4, self.labels.pass, self.labels.without_ports);
        let (ipv4, pass, without_ports) = labels;
        self.asm.bind(ipv4);
        self.read(IPV4_BYTES, pass);
        let asm = &mut self.asm;
        asm.store_constant(Size::Byte, R10, FAMILY, i32::from(FAMILY_V4));
        // For the verifier, which does not see that only IPv6's source is read as far as this.
        asm.store_constant(Size::Word, R10, HEADER + 20, 0);
        asm.load(Size::Word, R1, R10, HEADER + 16);
        asm.store(Size::Word, R10, ADDRESS, R1);
        asm.load(Size::Byte, NEXT, R10, HEADER + 9);
        // Version and header length.
        asm.load(Size::Byte, R1, R10, HEADER);
        asm.set(R2, R1);
        asm.alu(Operation::ShiftRight, R2, 4);
        asm.jump_if(R2, NotEqual, 4, pass);
        asm.alu(Operation::And, R1, 15);
        asm.alu(Operation::ShiftLeft, R1, 2);
        asm.jump_if(R1, Less, IPV4_BYTES, pass);
        asm.alu(Operation::Add, OFFSET, R1);
        // A fragment offset other than 0, or more fragments.
        asm.load(Size::Half, R1, R10, HEADER + 6);
        asm.jump_if(R1, AnyBitOf, network(0x3fff), without_ports);
        asm.jump_if(NEXT, Equal, ICMP, self.labels.icmp);
        asm.jump(self.labels.transport);
    }

    fn ipv6(&mut self) {
        let (pass, transport) = (self.labels.pass, self.labels.transport);
        self.asm.bind(self.labels.ipv6);
        self.read(IPV6_BYTES, pass);
        let asm = &mut self.asm;
        asm.store_constant(Size::Byte, R10, FAMILY, i32::from(FAMILY_V6));
        for half in [0, 8] {
            asm.load(Size::Double, R1, R10, HEADER + 24 + half);
            asm.store(Size::Double, R10, ADDRESS + half, R1);
        }
        asm.load(Size::Byte, R1, R10, HEADER);
        asm.alu(Operation::ShiftRight, R1, 4);
        asm.jump_if(R1, NotEqual, 6, pass);
        asm.load(Size::Byte, NEXT, R10, HEADER + 6);
        asm.alu(Operation::Add, OFFSET, IPV6_BYTES);
        asm.set(EXTENSIONS, MAX_IPV6_EXTENSIONS);

        let (again, extension) = (asm.label("again"), asm.label("extension"));
        let (fragment, counted) = (asm.label("fragment"), asm.label("counted"));
        asm.bind(again);
        for kind in [HOP_BY_HOP_OPTIONS, ROUTING, DESTINATION_OPTIONS, FRAGMENT] {
            asm.jump_if(NEXT, Equal, kind, extension);
        }
        asm.jump_if(NEXT, Equal, ICMPV6, self.labels.icmpv6);
        asm.jump(transport);

        self.asm.bind(extension);
        self.asm.jump_if(EXTENSIONS, Equal, 0, self.labels.without_ports);
        self.read(EXTENSION_BYTES, pass);
        let asm = &mut self.asm;
        asm.jump_if(NEXT, Equal, FRAGMENT, fragment);
        // The length is in units of 8 bytes, without the first 8.
        asm.load(Size::Byte, R1, R10, HEADER + 1);
        asm.alu(Operation::ShiftLeft, R1, 3);
        asm.alu(Operation::Add, OFFSET, R1);
        asm.jump(counted);
        asm.bind(fragment);
        // As for IPv4.
        asm.load(Size::Half, R1, R10, HEADER + 2);
        asm.jump_if(R1, AnyBitOf, network(0xfff9), self.labels.without_ports);
        asm.bind(counted);
        asm.alu(Operation::Add, OFFSET, EXTENSION_BYTES);
        asm.load(Size::Byte, NEXT, R10, HEADER);
        asm.alu(Operation::Subtract, EXTENSIONS, 1);
        asm.jump(again);
    }

    /// The look-ups, and those for packets without ports.
    fn transport(&mut self) {
        let ported = self.asm.label("ported");
        self.asm.bind(self.labels.transport);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            self.asm.jump_if(NEXT, Equal, i32::from(protocol.number()), ported);
        }
        self.asm.bind(self.labels.everything);
        self.look_up_portless(PACKETS_EVERYTHING);
        self.asm.jump(self.labels.pass);

        for (label, ranges) in [(self.labels.icmp, ICMP_ERRORS), (self.labels.icmpv6, ICMPV6_ERRORS)] {
            self.asm.bind(label);
            self.icmp_errors(ranges);
        }

        // All three have the source port in bytes 0 and 1, the destination port in bytes 2 and 3.
        self.asm.bind(ported);
        self.read(PORTS_BYTES, self.labels.everything);
        self.asm.store(Size::Byte, R10, PACKETS, NEXT);
        self.asm.load(Size::Half, R1, R10, HEADER + 2);
        self.asm.store(Size::Half, R10, PORT, R1);
        self.look_up();
        self.asm.store_constant(Size::Half, R10, PORT, 0);
        self.look_up();
        self.look_up_network();

        self.look_up_portless(PACKETS_EVERYTHING);
        self.turn_to_source();
        self.asm.store(Size::Byte, R10, PACKETS, NEXT);
        self.asm.load(Size::Half, R1, R10, HEADER);
        self.asm.store(Size::Half, R10, PORT, R1);
        self.look_up();
        self.asm.store_constant(Size::Half, R10, PORT, 0);
        self.look_up();
        self.asm.jump(self.labels.pass);

        self.asm.bind(self.labels.without_ports);
        self.look_up_portless(PACKETS_WITHOUT_PORTS);
        self.look_up_network();
        self.turn_to_source();
        self.look_up();
    }

    /// Makes the key the source's, as far as family and address go. Goes to `pass` where no key is of a source.
    ///
    /// Both families' source addresses are still in `HEADER`: what was read after them, extension headers and ports, is
    /// shorter than what comes before them.
    fn turn_to_source(&mut self) {
        let (ipv4, turned) = (self.asm.label("source_ipv4"), self.asm.label("turned"));
        let asm = &mut self.asm;
        asm.load_value_address(R1, self.sources);
        asm.load(Size::Word, R1, R1, 0);
        asm.jump_if(R1, Equal, 0, self.labels.pass);
        asm.load(Size::Byte, R1, R10, FAMILY);
        asm.set(R2, R1);
        asm.alu(Operation::Or, R2, i32::from(SOURCE));
        asm.store(Size::Byte, R10, FAMILY, R2);
        asm.jump_if(R1, Equal, i32::from(FAMILY_V4), ipv4);
        for half in [0, 8] {
            asm.load(Size::Double, R1, R10, HEADER + 8 + half);
            asm.store(Size::Double, R10, ADDRESS + half, R1);
        }
        asm.jump(turned);
        asm.bind(ipv4);
        asm.load(Size::Word, R1, R10, HEADER + 12);
        asm.store(Size::Word, R10, ADDRESS, R1);
        asm.bind(turned);
    }

    /// Sends ICMP messages of these types to the look-ups for packets without ports.
    fn icmp_errors(&mut self, ranges: &[[u8; 2]]) {
        self.read(ICMP_TYPE_BYTES, self.labels.everything);
        let asm = &mut self.asm;
        for &[first, last] in ranges {
            asm.load(Size::Byte, R1, R10, HEADER);
            asm.alu(Operation::Subtract, R1, i32::from(first));
            // Unsigned, so that lower types are beyond the range, too.
            asm.jump_if(R1, Less, i32::from(last - first) + 1, self.labels.without_ports);
        }
        asm.jump(self.labels.everything);
    }

    fn look_up_portless(&mut self, packets: u8) {
        self.asm.store_constant(Size::Byte, R10, PACKETS, i32::from(packets));
        self.asm.store_constant(Size::Half, R10, PORT, 0);
        self.look_up();
    }

    fn results(&mut self) {
        let asm = &mut self.asm;
        asm.bind(self.labels.pass);
        asm.set(
            R0,
            match self.flavour {
                Flavour::Xdp { .. } => XDP_PASS,
                Flavour::Guard => TCX_NEXT,
                Flavour::Filter => FILTER_KEEP_NONE,
            },
        );
        asm.exit();
        asm.bind(self.labels.take);
        match self.flavour {
            Flavour::Xdp { sockets } => {
                asm.load(Size::Word, R2, CONTEXT, XDP_MD_QUEUE);
                asm.load_map(R1, sockets);
                // The result where the map has no socket at this index.
                asm.set(R3, XDP_DROP);
                asm.call(HELPER_REDIRECT_MAP);
            }
            Flavour::Guard => asm.set(R0, TCX_DROP),
            Flavour::Filter => asm.set(R0, FILTER_KEEP_ALL),
        }
        asm.exit();
    }
}

#[cfg(test)]
mod tests;
