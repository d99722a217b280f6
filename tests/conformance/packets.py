"""Steps of a sequence as frames."""

from scapy.all import IP, TCP, UDP, IPOption_NOP, IPv6, Raw, fragment
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

from frames import fragments6, from_client, tcp, udp

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
    flow, header = step["flow"], step["header"]
    fields = header_fields(flow["family"], header, identification)
    packet = from_client(flow["client"], flow["vip"], **fields)
    packet /= transport(flow["protocol"], flow["port"], flow["to_port"], step["content"], step["size"])
    for name in ("wrong checksum", "no checksum"):
        layer = {"tcp": TCP, "udp": UDP, "sctp": SCTP}[flow["protocol"]]
        if header.get(name):
            packet[layer].chksum = 0x1234 if name == "wrong checksum" else 0
    if header.get("wrong header checksum"):
        packet[IP].chksum = 0x1234
    frame = bytes(packet)
    if header.get("cut short"):
        # The packet says so, too: ten bytes of a TCP header.
        length = len(frame) - len(bytes(packet[TCP])) + 10
        network = IP if flow["family"] == 4 else IPv6
        shorter = packet.copy()
        shorter[network].remove_payload()
        if flow["family"] == 4:
            shorter[IP].proto, shorter[IP].len = 6, length - 14
        else:
            shorter[IPv6].nh, shorter[IPv6].plen = 6, 10
        frame = bytes(shorter / Raw(frame[length - 10 : length]))
    return frame + b"\0" * header.get("padding", 0)


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
