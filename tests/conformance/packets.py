"""Steps of a sequence as frames."""

from scapy.all import (
    ICMP,
    IP,
    TCP,
    UDP,
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPOption_NOP,
    IPv6,
    Raw,
    fragment,
)
from scapy.layers.sctp import (
    SCTP,
    SCTPChunkAbort,
    SCTPChunkCookieAck,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkError,
    SCTPChunkHeartbeatReq,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkSACK,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
)

from frames import SERVER_MAC, fragments6, from_client, from_server, network_header, network_packet, tcp, udp
from frames import transport as layout
from scenario import server_address

CHUNKS = {
    "INIT": lambda: SCTPChunkInit(init_tag=1, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=1),
    "INIT-ACK": lambda: SCTPChunkInitAck(init_tag=2, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=1),
    "COOKIE-ECHO": lambda: SCTPChunkCookieEcho(cookie=b"cook"),
    "COOKIE-ACK": SCTPChunkCookieAck,
    "DATA": lambda: SCTPChunkData(beginning=1, ending=1, tsn=1, data=b"data"),
    "SACK": lambda: SCTPChunkSACK(cumul_tsn_ack=1, a_rwnd=65535),
    "HEARTBEAT": SCTPChunkHeartbeatReq,
    "SHUTDOWN": lambda: SCTPChunkShutdown(cumul_tsn_ack=1),
    "SHUTDOWN-ACK": SCTPChunkShutdownAck,
    "SHUTDOWN-COMPLETE": SCTPChunkShutdownComplete,
    "ERROR": SCTPChunkError,
    "ABORT": SCTPChunkAbort,
}


# Identifications of packets: the director's own begin at 1.
FIRST_IDENTIFICATION = 0x4000


def payload(size):
    return bytes(number % 251 for number in range(size))


def transport(protocol, source_port, port, content, size):
    """A segment, datagram or packet of chunks; `content` is TCP flags, or a chunk."""
    match protocol:
        case "tcp":
            opening = content == "S"
            seq, ack = (1000, 0) if opening else (1001, 5001 if "A" in content else 0)
            return tcp(source_port, port, content, seq, ack, b"" if opening else payload(size))
        case "udp":
            return udp(source_port, port, payload(size))
        case "sctp":
            return SCTP(sport=source_port, dport=port, tag=0 if content == "INIT" else 7) / CHUNKS[content]()
    raise ValueError(protocol)


def header_fields(family, header, identification):
    """Fields of the network header."""
    if family == 4:
        names = {"hops": "ttl", "class": "tos"}
        fields = {"id": FIRST_IDENTIFICATION + identification}
        if header.get("dont fragment"):
            fields["flags"] = "DF"
        if header.get("options"):
            fields["options"] = [IPOption_NOP()] * 4
    else:
        names = {"hops": "hlim", "class": "tc", "flow label": "fl"}
        fields = {}
    fields.update({names[name]: value for name, value in header.items() if name in names})
    return fields


def client_frame(step, identification):
    """The frame of a `client` step."""
    flow = step["flow"]
    fields = header_fields(flow["family"], step["header"], identification)
    link = from_client(flow["client"], flow["vip"], **fields)
    return finished(link, step, flow["port"], flow["to_port"])


def server_frame(step, identification, server):
    """The frame of a `server` step; `server` is the real server's number, its address, and its port."""
    flow = step["flow"]
    number, address, port = server
    fields = header_fields(flow["family"], step["header"], identification)
    return finished(from_server(number, flow["client"], address, **fields), step, port, flow["port"])


# Who tells the director, from the clients' side, that a packet did not arrive.
CLIENTS_ROUTERS = {4: "10.88.130.7", 6: "fd88:80:7::7"}
ERRORS6 = {1: ICMPv6DestUnreach, 2: ICMPv6PacketTooBig, 3: ICMPv6TimeExceeded, 4: ICMPv6ParamProblem}


def error_frame(step, identification, server):
    """The frame of an `error` step, about a packet to the client, or to the real server."""
    flow, (kind, code), family = step["flow"], step["kind"], step["flow"]["family"]
    number, address, port = server
    fields = header_fields(family, {}, identification)
    if step["side"] == "c":
        outer = from_client(CLIENTS_ROUTERS[family], flow["vip"], **fields)
        ends, ports = (flow["vip"], flow["client"]), (flow["to_port"], flow["port"])
    else:
        outer = from_server(number, flow["client"], address, **fields)
        ends, ports = (flow["client"], address), (flow["port"], port)
    content = {"tcp": "A", "udp": "", "sctp": "DATA"}[flow["protocol"]]
    inner = network_header(*ends) / transport(flow["protocol"], *ports, content, step["size"])
    if family == 4:
        mtu = {"nexthopmtu": 1300} if (kind, code) == (3, 4) else {}
        return bytes(outer / ICMP(type=kind, code=code, **mtu) / Raw(bytes(inner)))
    error = ERRORS6[kind](mtu=1300) if kind == 2 else ERRORS6[kind](code=code)
    return bytes(outer / error / Raw(bytes(inner)))


def finished(packet, step, source_port, port):
    """The frame with this link and network header, and what else the step says."""
    flow, header = step["flow"], step["header"]
    packet /= transport(flow["protocol"], source_port, port, step["content"], step["size"])
    for name in ("wrong checksum", "no checksum"):
        layer = {"tcp": TCP, "udp": UDP, "sctp": SCTP}[flow["protocol"]]
        if header.get(name):
            packet[layer].chksum = 0x1234 if name == "wrong checksum" else 0
    if header.get("wrong header checksum"):
        packet[IP].chksum = 0x1234
    frame = cut_short(packet) if header.get("cut short") else bytes(packet)
    return frame + b"\0" * header.get("padding", 0)


def cut_short(packet):
    """The frame with ten bytes of the TCP header, and lengths that say so."""
    segment, shorter = bytes(packet[TCP])[:10], packet.copy()
    if IP in packet:
        shorter[IP].remove_payload()
        shorter[IP].proto, shorter[IP].len = 6, 20 + 10
    else:
        shorter[IPv6].remove_payload()
        shorter[IPv6].nh, shorter[IPv6].plen = 6, 10
    return bytes(shorter / Raw(segment))


def server_of(flow, answers):
    """The real server to which a client's packet went: its number, its address, and its port there."""
    numbers = {bytes.fromhex(mac.replace(":", "")): number for number, mac in SERVER_MAC.items()}
    for frame in answers:
        number, packet = numbers.get(frame[:6]), network_packet(frame)
        if not number or packet is None:
            continue
        _, at, _ = layout(packet)
        if at is not None:
            return number, server_address(flow["family"], number), int.from_bytes(packet[at + 2 : at + 4], "big")
    return None


def datagram_frames(step, identification):
    """The fragments of a `datagram` step, in the order in which they are sent."""
    flow = step["flow"]
    fields = {"id": FIRST_IDENTIFICATION + identification} if flow["family"] == 4 else {}
    whole = from_client(flow["client"], flow["vip"], **fields)
    whole /= udp(flow["port"], flow["to_port"], payload(step["size"] * step["count"] - 8))
    if flow["family"] == 4:
        pieces = fragment(whole, step["size"])
    else:
        pieces = fragments6(whole, identification, step["size"])
    assert len(pieces) == step["count"], (len(pieces), step)
    return [bytes(pieces[number]) for number in step["order"]]
