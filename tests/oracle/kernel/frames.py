"""Frames of the recordings: who is who, how frames are built, put in words, and compared.

The network: clients are behind one router on the director's interface c, real servers r1 to r5 are on its interface s.
Every address exists in both families.
"""

from scapy.all import (
    ICMP,
    IP,
    TCP,
    UDP,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPerror,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    NoPayload,
    Raw,
    TCPerror,
    UDPerror,
)
from scapy.layers.sctp import SCTP

ROUTER_MAC = "02:00:0a:58:01:01"
DIRECTOR_MAC = {"c": "02:00:0a:58:01:fe", "s": "02:00:0a:58:02:fe"}
SERVER_MAC = {number: f"02:00:0a:58:02:{10 + number:02x}" for number in range(1, 6)}
WHO = {ROUTER_MAC: "router", **{mac: f"director-{port}" for port, mac in DIRECTOR_MAC.items()}}
WHO.update({mac: f"r{number}" for number, mac in SERVER_MAC.items()})

VIP4, VIP6 = "10.88.0.100", "fd88::100"
CLIENT4, CLIENT6 = "10.88.128.1", "fd88:80::1"


def server4(number):
    return f"10.88.2.{10 + number}"


def server6(number):
    return f"fd88:2::{10 + number}"


def network_header(source, destination, **fields):
    return (IPv6 if ":" in source else IP)(src=source, dst=destination, **fields)


def from_client(source, destination=None, **fields):
    """Link and network header of a packet that the router hands to the director."""
    destination = destination or (VIP6 if ":" in source else VIP4)
    return Ether(src=ROUTER_MAC, dst=DIRECTOR_MAC["c"]) / network_header(source, destination, **fields)


def from_server(number, destination, source=None, **fields):
    """Link and network header of a packet of a real server."""
    source = source or (server6(number) if ":" in destination else server4(number))
    return Ether(src=SERVER_MAC[number], dst=DIRECTOR_MAC["s"]) / network_header(source, destination, **fields)


def tcp(source_port, port, flags="S", seq=1000, ack=0, payload=b""):
    return TCP(sport=source_port, dport=port, flags=flags, seq=seq, ack=ack, window=64240) / payload


def udp(source_port, port, payload=b"query", **fields):
    return UDP(sport=source_port, dport=port, **fields) / payload


def fragments6(packet, identification, size):
    """An IPv6 packet's fragments, each with at most `size` bytes of its payload, a multiple of 8."""
    whole = bytes(packet[IPv6])
    header, payload = whole[:40], whole[40:]
    frames = []
    for at in range(0, len(payload), size):
        piece = payload[at : at + size]
        more = int(at + size < len(payload))
        fragment = IPv6ExtHdrFragment(nh=header[6], offset=at // 8, m=more, id=identification)
        base = IPv6(header[:40])
        base.remove_payload()
        base.nh, base.plen = 44, 8 + len(piece)
        frames.append(Ether(src=packet.src, dst=packet.dst) / base / fragment / Raw(piece))
    return frames


ERRORS6 = (ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded)


def layer_in_words(layer):
    match layer:
        case IP():
            flags = f"{' DF' if layer.flags.DF else ''}{' MF' if layer.flags.MF else ''}"
            at = f" at{layer.frag * 8}" if layer.frag else ""
            return f"{layer.src}>{layer.dst} ttl{layer.ttl} id{layer.id} tos{layer.tos}{flags}{at} len{layer.len}"
        case IPv6():
            label = f" label{layer.fl}" if layer.fl else ""
            return f"{layer.src}>{layer.dst} hlim{layer.hlim} class{layer.tc}{label} len{40 + (layer.plen or 0)}"
        case IPv6ExtHdrFragment():
            return f"fragment id{layer.id} at{layer.offset * 8}{' more' if layer.m else ''}"
        case TCP() | TCPerror():
            return f"tcp {layer.sport}>{layer.dport} {layer.flags} seq{layer.seq} ack{layer.ack}"
        case UDP() | UDPerror():
            return f"udp {layer.sport}>{layer.dport} len{layer.len}"
        case SCTP():
            return f"sctp {layer.sport}>{layer.dport} tag{layer.tag}"
        case ICMP():
            return f"icmp {layer.type}/{layer.code}"
        case _ if isinstance(layer, ERRORS6):
            mtu = f" mtu{layer.mtu}" if isinstance(layer, ICMPv6PacketTooBig) else ""
            return f"icmp6 {layer.type}/{layer.code}{mtu}"
        case Raw():
            return f"{len(layer.load)} bytes {layer.load[:8].hex()}"
    return layer.name


def in_words(frame):
    """`to r1: ... / tcp 4000>80 S ...`"""
    frame = Ether(frame)
    words, layer = [], frame.payload
    while not isinstance(layer, NoPayload):
        words.append(layer_in_words(layer))
        layer = layer.payload
    sums = "" if checksums_are_right(bytes(frame)) else " BAD CHECKSUM"
    return f"to {WHO.get(frame.dst, frame.dst)}: {' / '.join(words)}{sums}"


def ones_complement(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def transport(packet):
    """Protocol, place of the transport's header (`None` in a later fragment), and whether the packet is whole."""
    if packet[0] >> 4 == 4:
        fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
        return packet[9], None if fragment & 0x1FFF else (packet[0] & 15) * 4, not fragment
    protocol, at, whole = packet[6], 40, True
    while protocol in (0, 43, 44, 60) and at + 8 <= len(packet):
        if protocol == 44:
            whole = False
            if int.from_bytes(packet[at + 2 : at + 4], "big") & 0xFFF8:
                return packet[at], None, False
            length = 8
        else:
            length = 8 + packet[at + 1] * 8
        protocol, at = packet[at], at + length
    return protocol, at, whole


CHECKSUM_AT = {1: 2, 6: 16, 17: 6, 58: 2}


def network_packet(frame):
    """The IP packet in a frame, without padding; `None` if there is none."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        return packet[: int.from_bytes(packet[2:4], "big")]
    if kind == b"\x86\xdd":
        return packet[: 40 + int.from_bytes(packet[4:6], "big")]
    return None


def checksums_are_right(frame):
    """Of the IPv4 header, and of TCP, UDP and ICMP in whole packets."""
    packet = network_packet(frame)
    if packet is None:
        return True
    is_v4 = packet[0] >> 4 == 4
    if is_v4 and ones_complement(packet[: (packet[0] & 15) * 4]) != 0xFFFF:
        return False
    protocol, at, whole = transport(packet)
    if not whole or at is None or protocol not in CHECKSUM_AT:
        return True
    segment = packet[at:]
    if protocol == 17 and segment[6:8] == b"\0\0":
        return is_v4
    addresses = packet[12:20] if is_v4 else packet[8:40]
    pseudo_header = addresses + len(segment).to_bytes(4, "big") + protocol.to_bytes(4, "big")
    return ones_complement((b"" if protocol == 1 else pseudo_header) + segment) == 0xFFFF


def comparable(port, frame, cause):
    """An answer to `cause`, without what differs from run to run.

    That is: checksums' values (whether they are right is kept), identifications that the director chose, the flow
    label and the source port that a tunnel derives from a hash.
    """
    packet = network_packet(frame)
    if packet is None:
        return port, frame[:6], frame[14:]
    right, packet = checksums_are_right(frame), bytearray(packet)
    asked = network_packet(cause) or b""
    if packet[0] >> 4 == 4:
        if packet[4:6] != b"\0\0" and not (asked[:1] == packet[:1] and packet[4:6] == asked[4:6]):
            packet[4:6] = b"\xee\xee"
        packet[10:12] = b"\0\0"
    elif packet[6] == 44 and not (len(asked) > 48 and asked[6] == 44 and packet[44:48] == asked[44:48]):
        packet[44:48] = b"\xee" * 4
    protocol, at, _ = transport(packet)
    if at is not None and protocol in CHECKSUM_AT:
        place = at + CHECKSUM_AT[protocol]
        if protocol != 17 or packet[place : place + 2] != b"\0\0":
            packet[place : place + 2] = b"\0\1"
        if protocol == 17 and packet[at + 2 : at + 4] == (6080).to_bytes(2, "big"):
            packet[at : at + 2] = b"\xee\xee"
        if protocol == 1 and packet[at] in (3, 4, 5, 11, 12):
            packet[at + 18 : at + 20] = b"\0\0"
    return port, frame[:6], bytes(packet), right
