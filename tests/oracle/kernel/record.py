#!/usr/bin/python3
"""Records what the kernel does: IPv6 and SCTP.

    record.py [--into FOLDER] [CASE ...]

Needs root, and beside the packages of scripts/oracle-kernel: python3-scapy, ethtool, iptables.
"""

import argparse
import sys
from pathlib import Path

from scapy.all import (
    ICMP,
    IP,
    TCP,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    Raw,
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

from frames import (
    CLIENT4,
    CLIENT6,
    DIRECTOR_MAC,
    ROUTER_MAC,
    SERVER_MAC,
    VIP4,
    VIP6,
    fragments6,
    from_client,
    from_server,
    network_packet,
    server4,
    server6,
    tcp,
    udp,
)
from lab import Lab, Recorder

SECOND_CLIENT = "fd88:80::2"
CONNECTIONS = "ipvsadm -Lnc | tail -n +3 | sort"
SERVICES = "ipvsadm -Ln"
# A router between clients and director, and one between director and real servers.
CLIENTS_ROUTER, SERVERS_ROUTER = "fd88:80:7::7", "fd88:2::1"
METHODS = {"dr": "-g", "nat": "-m", "tun": "-i"}


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def service(vip=VIP6, port=80, kind="-t", servers=(1,), method="-g", server_port=None, scheduler="rr", flags=""):
    """Commands for a service and its real servers, of the virtual address's family."""
    address = server6 if ":" in vip else server4
    name = f"{kind} {endpoint(vip, port)}"
    lines = [f"ipvsadm -A {name} -s {scheduler} {flags}".strip()]
    for number in servers:
        real = endpoint(address(number), server_port or port)
        lines.append(f"ipvsadm -a {name} -r {real} {method} -w 1")
    return "\n".join(lines)


class Case(Recorder):
    """A recorder that knows the two ends of a connection to port 80."""

    def client(self, flags, note=None, port=4000, client=CLIENT6, to_port=80, vip=None, **fields):
        return self.send("c", from_client(client, vip) / tcp(port, to_port, flags, **fields), note)

    def server(self, flags, note=None, port=80, to_port=4000, seq=5000, ack=1001, number=1, client=CLIENT6, **fields):
        segment = tcp(port, to_port, flags, seq=seq, ack=ack, **fields)
        return self.send("s", from_server(number, client) / segment, note)

    def open(self, port=4000, **fields):
        self.client("S", port=port, **fields)
        self.client("A", port=port, seq=1001, ack=1, **fields)


def dr_states(case):
    it = case("v6-dr-tcp-states", service(), "DR: director sees only client packets; state after each")
    for flags, note, seq, ack, payload in (
        ("S", "SYN", 1000, 0, b""),
        ("S", "SYN retransmit", 1000, 0, b""),
        ("A", "ACK", 1001, 1, b""),
        ("PA", "data", 1001, 1, b"GET / HTTP/1.0\r\n\r\n"),
        ("FA", "FIN", 1019, 1, b""),
        ("A", "last ACK", 1020, 2, b""),
        ("S", "SYN on same tuple in FIN_WAIT", 9000, 0, b""),
        ("R", "RST", 9001, 0, b""),
        ("S", "SYN after RST", 12000, 0, b""),
        ("A", "ACK", 12001, 1, b""),
        ("R", "RST in ESTABLISHED", 12002, 0, b""),
        ("A", "stray ACK in CLOSE", 12002, 1, b""),
    ):
        it.client(flags, note, seq=seq, ack=ack, payload=payload)
        it.run(CONNECTIONS)
    it.run(SERVICES)
    for number, flags in enumerate(("A", "R", "FA", "SA", "PA", "", "FPU", "SR", "SF")):
        it.client(flags, f"no connection, flags {flags}", port=4100 + number, client=SECOND_CLIENT, ack=77)
    it.run(CONNECTIONS)
    return it


def nat_states(case):
    it = case("v6-nat-tcp-states", service(method="-m", server_port=8080), "NAT with another port, both directions")

    def step(send, flags, note, **fields):
        send(flags, note, **fields)
        it.run(CONNECTIONS)

    step(it.client, "S", "SYN")
    step(it.server, "SA", "SYN-ACK", port=8080)
    step(it.client, "A", "ACK", seq=1001, ack=5001)
    step(it.client, "PA", "request", seq=1001, ack=5001, payload=b"GET / HTTP/1.0\r\n\r\n")
    step(it.server, "PA", "response", port=8080, seq=5001, ack=1019, payload=b"HTTP/1.0 200 OK\r\n\r\nhello")
    step(it.server, "FA", "server FIN", port=8080, seq=5024, ack=1019)
    step(it.client, "FA", "client FIN", seq=1019, ack=5025)
    step(it.server, "A", "last ACK", port=8080, seq=5025, ack=1020)
    it.sleep(2.5)
    it.run(f"{SERVICES}; ipvsadm -Ln --stats --exact")
    step(it.client, "S", "SYN reuse in TIME_WAIT", seq=20000)
    step(it.server, "R", "server RST (as refused)", port=8080, seq=0, ack=20001)
    return it


def nat_client_close(case):
    it = case("v6-nat-tcp-states-client-close", service(method="-m"), "NAT: the client closes first")
    for send, flags, note, seq, ack in (
        (it.client, "S", "SYN", 1000, 0),
        (it.server, "SA", "SYN-ACK", 5000, 1001),
        (it.client, "A", "ACK", 1001, 5001),
        (it.client, "FA", "client FIN", 1001, 5001),
        (it.server, "A", "ack of FIN", 5001, 1002),
        (it.server, "FA", "server FIN", 5001, 1002),
        (it.client, "A", "last ACK", 1002, 5002),
        (it.server, "A", "late server packet", 5002, 1002),
    ):
        send(flags, note, seq=seq, ack=ack)
        it.run(CONNECTIONS)
    it.server("A", "server's packet without a connection: plain forwarding", port=81)
    return it


def nat_icmp_send(case):
    setup = service(method="-m") + "\nsysctl -qw net.ipv4.vs.nat_icmp_send=1"
    it = case("v6-nat-icmp-send", setup, "nat_icmp_send=1: a server's packet of an unknown connection")
    for flags in ("A", "SA", "R"):
        it.server(flags, f"{flags}, unknown", to_port=4999)
    it.send("s", from_server(1, CLIENT6) / udp(80, 9, b"x"), "UDP, unknown")
    return it


def udp_service(method):
    def record(case):
        server_port = 5353 if method == "nat" else 53
        setup = service(kind="-u", port=53, servers=(1, 2), method=METHODS[method], server_port=server_port)
        it = case(f"v6-udp-{method}", setup, "UDP service")
        for port in (7000, 7001, 7000):
            it.send("c", from_client(CLIENT6) / udp(port, 53))
            it.run(CONNECTIONS)
        it.send("c", from_client(CLIENT6) / udp(7002, 53, chksum=0), "UDP checksum 0")
        it.send("c", from_client(CLIENT6) / udp(7003, 53, chksum=0x4321), "wrong UDP checksum")
        if method == "nat":
            it.send("s", from_server(2, CLIENT6) / udp(5353, 7000, b"answer"), "reply")
            it.send("s", from_server(2, CLIENT6) / udp(5353, 7000, b"answer", chksum=0), "reply, checksum 0")
            it.run(CONNECTIONS)
        it.send("c", from_client(CLIENT6) / udp(7000, 54, b"x"), "port without service")
        it.sleep(2.5)
        it.run("ipvsadm -Ln --stats --exact")
        return it

    return record


def udp_one_packet(case):
    setup = service(kind="-u", port=53, servers=(1, 2), flags="-o")
    it = case("v6-udp-ops", setup, "one-packet scheduling")
    for port in (7000, 7000, 7000, 7001):
        it.send("c", from_client(CLIENT6) / udp(port, 53))
    it.run(CONNECTIONS)
    it.run(f"{SERVICES}; ipvsadm -S -n")
    return it


def tunnel(name, vip, real, options, description):
    """A tunnel between two families, or of one of the kinds with a header of their own."""

    def record(case):
        name_of_service = f"-t {endpoint(vip, 80)}"
        setup = (
            f"ipvsadm -A {name_of_service} -s rr\n"
            f"ipvsadm -a {name_of_service} -r {endpoint(real, 80)} -i {options}".strip()
        )
        it = case(name, setup, description)
        is_v6 = ":" in vip
        client = CLIENT6 if is_v6 else CLIENT4
        hops, service_class = ("hlim", "tc") if is_v6 else ("ttl", "tos")

        def one(port, note, payload=b"", **fields):
            it.send("c", from_client(client, vip, **fields) / tcp(port, 80, payload=payload), note)

        one(5000, "plain")
        for number, value in enumerate((0x10, 0x01, 0x02, 0x03, 0xB8, 0xFF)):
            one(5010 + number, f"{service_class} {value:#x}", **{service_class: value})
        for number, value in enumerate((255, 64, 2, 1)):
            one(5020 + number, f"{hops} {value}", **{hops: value})
        if is_v6:
            one(5030, "flow label", fl=0x12345)
        header = 60 if is_v6 else 40
        for number, length in enumerate((1440, 1452, 1460, 1480, 1500)):
            one(5040 + number, f"{length} bytes", payload=b"x" * (length - header))
        if not is_v6:
            one(5050, "DF", flags="DF")
            for number, length in enumerate((1440, 1452, 1460, 1480, 1500)):
                one(5060 + number, f"{length} bytes, DF", payload=b"x" * (length - header), flags="DF")
        it.run(f"{CONNECTIONS} | tail -3")
        it.run(f"{SERVICES}; ipvsadm -Ln --tun-info; ipvsadm -S -n")
        return it

    return record


def tunnel_path_errors(case):
    it = case("v6-tun-icmp-from-path", service(method="-i"), "servers' side ICMPv6 errors about the outer packet")
    it.client("S", port=5200)
    data = {"port": 5200, "seq": 1001, "ack": 1, "payload": b"y" * 1380}
    outer = network_packet(it.client("A", "data", **data)[0])
    router = Ether(src=SERVER_MAC[2], dst=DIRECTOR_MAC["s"]) / IPv6(src=server6(2), dst="fd88:2::fe")
    it.send("s", router / ICMPv6PacketTooBig(mtu=1400) / Raw(outer[:1000]), "too big, mtu 1400, about the outer packet")
    it.client("A", "data again, after that", **data)
    it.client("A", "data again", **data)
    it.send("s", router / ICMPv6TimeExceeded(code=0) / Raw(outer[:300]), "hop limit exceeded, about the outer packet")
    it.send("s", router / ICMPv6DestUnreach(code=0) / Raw(outer[:300]), "no route, about the outer packet")
    it.send("s", router / ICMPv6ParamProblem(code=1) / Raw(outer[:300]), "next header unknown, about the outer packet")
    it.run(CONNECTIONS)
    return it


def icmp(method):
    def record(case):
        server_port = 8080 if method == "nat" else 80
        setup = service(method=METHODS[method], server_port=server_port)
        it = case(f"v6-icmp-{method}", setup, "ICMPv6 errors about a tracked connection")
        it.open(5000)
        inner = IPv6(src=VIP6, dst=CLIENT6, hlim=60) / tcp(80, 5000, "A", 5001, 1001, b"z" * 100)
        errors = [
            (ICMPv6DestUnreach(code=code), f"1/{code}") for code in (0, 1, 3, 4)
        ] + [
            (ICMPv6PacketTooBig(mtu=1300), "too big"),
            (ICMPv6TimeExceeded(code=0), "3/0"),
            (ICMPv6TimeExceeded(code=1), "3/1"),
            (ICMPv6ParamProblem(code=0, ptr=7), "4/0"),
        ]
        side = Ether(src=ROUTER_MAC, dst=DIRECTOR_MAC["c"]) / IPv6(src=CLIENTS_ROUTER, dst=VIP6)
        for error, words in errors:
            it.send("c", side / error / Raw(bytes(inner)[:48]), f"clients' side {words}, 8 bytes of TCP")
        it.send("c", side / ICMPv6PacketTooBig(mtu=1300) / inner, "clients' side, whole inner packet")
        unknown = IPv6(src=VIP6, dst=CLIENT6) / tcp(80, 5999)
        it.send("c", side / ICMPv6DestUnreach(code=4) / Raw(bytes(unknown)[:48]), "about an unknown connection")
        one_hop = side.copy()
        one_hop[IPv6].hlim = 1
        it.send("c", one_hop / ICMPv6DestUnreach(code=4) / Raw(bytes(inner)[:48]), "clients' side, hop limit 1")
        if method == "nat":
            inner = IPv6(src=CLIENT6, dst=server6(1), hlim=60) / tcp(5000, 8080, "A", 1001, 1, b"w" * 50)
            for error, words in errors:
                it.send("s", from_server(1, CLIENT6) / error / Raw(bytes(inner)[:48]), f"server's side {words}")
            router = from_server(2, CLIENT6, source=SERVERS_ROUTER)
            it.send("s", router / ICMPv6DestUnreach(code=3) / Raw(bytes(inner)[:48]), "from a router there")
            unreachable = from_server(1, CLIENT6) / ICMPv6DestUnreach(code=4)
            it.send("s", unreachable / inner, "server's side, whole inner packet")
        it.send("c", from_client(CLIENT6) / ICMPv6EchoRequest(id=7, seq=1, data=b"ping"), "echo to the VIP")
        it.run(CONNECTIONS)
        return it

    return record


def fragmented(method):
    def record(case):
        setup = service(kind="-u", port=53, servers=(1, 2), method=METHODS[method])
        it = case(f"v6-frag-{method}", setup, "fragments of one UDP datagram")

        def pieces(identification, port):
            return fragments6(from_client(CLIENT6) / udp(port, 53, bytes(range(256)) * 12), identification, 1400)

        for number, piece in enumerate(pieces(801, 7000)):
            it.send("c", piece, f"in order, fragment {number}")
        for number, piece in enumerate(reversed(pieces(802, 7001))):
            it.send("c", piece, f"reverse order, fragment {number}")
        lonely = pieces(803, 7002)
        it.send("c", lonely[1], "only the middle fragment")
        it.send("c", lonely[0], "then the first")
        it.run(CONNECTIONS)
        return it

    return record


def persistence(kind):
    def record(case):
        others = ("fd88:80::3", "fd88:80:0:1::4")
        servers = (1, 2, 3)
        match kind:
            case "ppc":
                both = (service(port=port, servers=servers, flags="-p 50") for port in (80, 443))
                it = case("v6-persist-ppc", "\n".join(both), "a template per port")
                for client in (CLIENT6, SECOND_CLIENT, *others):
                    for number in range(2):
                        it.client("S", port=6000 + number, client=client)
                        it.client("S", port=6100 + number, client=client, to_port=443)
            case "pcc":
                setup = service(port=0, servers=servers, flags="-p 50")
                it = case("v6-persist-pcc", setup, "port 0: a template per client")
                for client in (CLIENT6, SECOND_CLIENT, others[0]):
                    for port in (80, 443, 21):
                        it.client("S", port=6000 + port, client=client, to_port=port)
            case "prefix":
                it = case("v6-persist-prefix", service(servers=servers, flags="-p 50 -M 64"), "-M 64")
                for client in ("fd88:80::1", "fd88:80::ffff", "fd88:80:0:1::1", "fd88:80:0:1::77", "fd88:80:0:2::5"):
                    it.client("S", port=6000, client=client)
            case "fwmark":
                rule = "ip6tables-legacy -t mangle -A PREROUTING -p tcp -d"
                setup = [
                    f"{rule} {VIP6} -m multiport --dports 80,443 -j MARK --set-mark 7",
                    f"{rule} fd88::101 --dport 80 -j MARK --set-mark 7",
                    "ipvsadm -A -f 7 -6 -s rr -p 50",
                    *(f"ipvsadm -a -f 7 -6 -r [{server6(number)}]:0 -g -w 1" for number in servers),
                ]
                it = case("v6-persist-fwmark", "\n".join(setup), "a template per mark")
                for client in (CLIENT6, SECOND_CLIENT):
                    it.client("S", port=6000, client=client)
                    it.client("S", port=6001, client=client, to_port=443)
                    it.client("S", port=6002, client=client, vip="fd88::101")
                    it.client("S", "unmarked", port=6003, client=client, vip="fd88::102")
        it.run(CONNECTIONS)
        it.run(f"{SERVICES}; ipvsadm -Ln --persistent-conn; ipvsadm -S -n")
        return it

    return record


def no_destination(case):
    setup = (
        f"ipvsadm -A -t [{VIP6}]:80 -s rr\nipvsadm -A -u [{VIP6}]:53 -s rr\nipvsadm -A -t [{VIP6}]:81 -s rr\n"
        f"ipvsadm -a -t [{VIP6}]:81 -r [{server6(1)}]:81 -g -w 0"
    )
    it = case("v6-no-destination", setup, "no destination at all, and weight 0 only")
    it.client("S", "TCP SYN, no destinations", port=5000)
    it.send("c", from_client(CLIENT6) / udp(5000, 53, b"q"), "UDP, no destinations")
    it.client("S", "TCP SYN, all weight 0", port=5001, to_port=81)
    it.client("S", "TCP SYN, no service (VIP is local)", port=5002, to_port=82)
    it.client("A", "ACK, no destinations", port=5000)
    it.sleep(2.5)
    it.run(f"{SERVICES}; ipvsadm -Ln --stats --exact")
    it.run(CONNECTIONS)
    return it


def quiesce(case):
    it = case("v6-quiesce", service(servers=(1, 2, 3)), "weight 0: new connections go elsewhere; then removal")
    name, real = f"-t [{VIP6}]:80", f"[{server6(2)}]:80"

    def old_connection(note):
        it.client("A", note, port=5001, seq=1001, ack=1)

    for number in range(3):
        it.open(5000 + number)
    it.run(f"ipvsadm -e {name} -r {real} -g -w 0")
    for number in range(4):
        it.client("S", "new", port=5100 + number)
    old_connection("old connection of r2")
    it.run(SERVICES)
    it.run(f"ipvsadm -d {name} -r {real}")
    old_connection("old connection of removed r2")
    it.run(CONNECTIONS)
    it.run(f"ipvsadm -a {name} -r {real} -g -w 1")
    old_connection("r2 added again")
    it.run(SERVICES)
    it.run(f"sysctl -qw net.ipv4.vs.expire_nodest_conn=1; ipvsadm -d {name} -r {real}")
    old_connection("expire_nodest_conn=1, first")
    old_connection("second")
    it.run(CONNECTIONS)
    return it


def thresholds(case):
    name = f"-t [{VIP6}]:80"
    reals = ("-x 3 -y 1", "-x 4", "")
    setup = [f"ipvsadm -A {name} -s rr"]
    setup += [f"ipvsadm -a {name} -r [{server6(number)}]:80 -g {x}".strip() for number, x in zip((1, 2, 3), reals)]
    it = case("v6-thresholds", "\n".join(setup), "upper and lower thresholds")
    both = f"ipvsadm -Ln --thresholds; {SERVICES}"
    for number in range(16):
        it.client("S", port=5000 + number)
    it.run(both)
    for number in range(16):
        it.client("A", port=5000 + number, seq=1001, ack=1)
    for number in range(16):
        it.client("R", port=5000 + number, seq=1001, ack=1)
    it.run(both)
    it.sleep(11)
    it.run(SERVICES)
    for number in range(6):
        it.client("S", port=5100 + number)
    it.run(SERVICES)
    return it


def headers(method):
    def record(case):
        setup = service(method=METHODS[method])
        it = case(f"v6-{method}-headers", setup, "header handling; packets that are not right")

        def one(port, note, **fields):
            it.send("c", from_client(CLIENT6, **fields) / tcp(port, 80), note)

        for number, hops in enumerate((255, 64, 2, 1)):
            one(5000 + number, f"hop limit {hops}", hlim=hops)
        for number, value in enumerate((0x10, 3, 0xB8)):
            one(5010 + number, f"traffic class {value:#x}", tc=value)
        one(5020, "flow label", fl=0x12345)
        bad = from_client(CLIENT6) / TCP(sport=5040, dport=80, flags="S", chksum=0x1234)
        it.send("c", bad, "bad TCP checksum")
        it.send("c", bytes(from_client(CLIENT6, plen=10) / tcp(5041, 80))[:64], "truncated TCP header")
        it.send("c", bytes(from_client(CLIENT6) / tcp(5042, 80)) + b"\0" * 6, "padding after the packet")
        it.run(CONNECTIONS)
        return it

    return record


def too_big(method):
    def record(case):
        route = f"ip -6 route replace {server6(1)}/128 dev vec1 mtu 1400"
        setup = f"{service(method=METHODS[method])}\n{route}"
        it = case(f"v6-{method}-too-big", setup, "the route to the real server has mtu 1400")
        for number, length in enumerate((1400, 1401, 1500)):
            payload = b"x" * (length - 60)
            it.send("c", from_client(CLIENT6) / tcp(5000 + number, 80, payload=payload), f"{length} bytes")
        it.run(CONNECTIONS)
        it.run(f"ip -6 route del {server6(1)}/128 dev vec1")
        return it

    return record


def port_reuse(mode):
    def record(case):
        setup = service(servers=(1, 2, 3)) + f"\nsysctl -qw net.ipv4.vs.conn_reuse_mode={mode}"
        it = case(f"v6-conn-reuse-{mode}", setup, "port reuse after FIN")
        for port in (5000, 5001):
            it.client("S", port=port)
        it.client("A", port=5000, seq=1001, ack=1)
        it.client("FA", port=5000, seq=1001, ack=1)
        it.run(CONNECTIONS)
        it.client("S", "SYN on the same tuple", port=5000, seq=99999)
        it.run(CONNECTIONS)
        it.client("S", "SYN on a tuple in SYN_RECV", port=5001, seq=99999)
        it.run(CONNECTIONS)
        it.client("A", port=5001, seq=1001, ack=1)
        it.client("S", "SYN on an ESTABLISHED tuple", port=5001, seq=99999)
        it.run(CONNECTIONS)
        return it

    return record


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
SCTP_LIFE = (
    ("c", "INIT"),
    ("s", "INIT-ACK"),
    ("c", "COOKIE-ECHO"),
    ("s", "COOKIE-ACK"),
    ("c", "DATA"),
    ("s", "SACK"),
    ("c", "HEARTBEAT"),
    ("c", "SHUTDOWN"),
    ("s", "SHUTDOWN-ACK"),
    ("c", "SHUTDOWN-COMPLETE"),
    ("c", "INIT"),
)


def sctp(port, to_port, *chunks):
    packet = SCTP(sport=port, dport=to_port, tag=7)
    for chunk in chunks:
        packet = packet / CHUNKS[chunk]()
    return packet


def sctp_service(vip=VIP4, **fields):
    return service(vip=vip, kind="--sctp-service", **fields)


def sctp_life(method, vip=VIP4, prefix=""):
    """One association from its beginning to its end; in DR and TUN the director sees the client's packets only."""

    def record(case):
        server_port = 8080 if method == "nat" else 80
        setup = sctp_service(vip, method=METHODS[method], server_port=server_port)
        it = case(f"{prefix}sctp-{method}", setup, "an SCTP association; state after each packet")
        client = CLIENT6 if ":" in vip else CLIENT4
        for side, chunk in SCTP_LIFE:
            if side == "c":
                it.send("c", from_client(client) / sctp(4000, 80, chunk), chunk)
            elif method == "nat":
                it.send("s", from_server(1, client) / sctp(8080, 4000, chunk), chunk)
            else:
                continue
            it.run(CONNECTIONS)
        bad = from_client(client) / sctp(4000, 80, "DATA")
        bad[SCTP].chksum = 0x12345678
        it.send("c", bad, "DATA, bad checksum")
        it.run(CONNECTIONS)
        it.run(SERVICES)
        return it

    return record


def sctp_first_chunks(name, sloppy, description):
    def record(case):
        it = case(name, f"{sctp_service(servers=(1, 2))}\nsysctl -qw net.ipv4.vs.sloppy_sctp={sloppy}", description)
        for number, chunk in enumerate(CHUNKS):
            it.send("c", from_client(CLIENT4) / sctp(5000 + number, 80, chunk), f"no connection: {chunk}")
        it.run(CONNECTIONS)
        it.run(SERVICES)
        return it

    return record


def sctp_chunk_pairs(case):
    it = case("sctp-chunk-pairs", sctp_service(), "packets of several chunks: which of them counts; no chunk at all")
    pairs = (
        ("INIT", "DATA"),
        ("COOKIE-ECHO", "DATA"),
        ("COOKIE-ECHO", "ABORT"),
        ("COOKIE-ACK", "ABORT"),
        ("DATA", "ABORT"),
        ("DATA", "SHUTDOWN"),
        ("SACK", "ABORT"),
    )
    for number, pair in enumerate(pairs):
        it.send("c", from_client(CLIENT4) / sctp(5000 + number, 80, "INIT"), "INIT")
        it.send("c", from_client(CLIENT4) / sctp(5000 + number, 80, *pair), " and ".join(pair))
    it.send("c", from_client(CLIENT4) / sctp(5090, 80), "no chunk")
    it.run(CONNECTIONS)
    return it


def sctp_pairs(first, side):
    """The state after the client's INIT, one chunk, and each of all chunks.

    In DR all of them are the client's; in NAT both chunks are the real server's. One case for each first chunk, so
    that it is over before a short timeout ends.
    """
    name = f"sctp-{'dr' if side == 'c' else 'nat'}-after-{first.lower()}"

    def record(case):
        setup = sctp_service(method="-g" if side == "c" else "-m")
        whose = "the client" if side == "c" else "the real server"
        it = case(name, setup, f"the state after INIT, {first} of {whose}, and each chunk of {whose}")
        for number, second in enumerate(CHUNKS):
            port = 5000 + number
            it.send("c", from_client(CLIENT4) / sctp(port, 80, "INIT"))
            for chunk in (first, second):
                if side == "c":
                    it.send("c", from_client(CLIENT4) / sctp(port, 80, chunk), chunk)
                else:
                    it.send("s", from_server(1, CLIENT4) / sctp(80, port, chunk), chunk)
        it.run(CONNECTIONS)
        return it

    return name, record


def sctp_icmp(case):
    it = case("sctp-icmp-nat", sctp_service(method="-m"), "ICMP errors about an association")
    it.send("c", from_client(CLIENT4) / sctp(5000, 80, "INIT"))
    inner = IP(src=VIP4, dst=CLIENT4, id=4242, ttl=60) / sctp(80, 5000, "DATA")
    side = from_client("10.88.130.7")
    for error, words in ((ICMP(type=3, code=4, nexthopmtu=1300), "3/4"), (ICMP(type=3, code=2), "3/2")):
        it.send("c", side / error / Raw(bytes(inner)[:28]), f"clients' side {words}")
    inner = IP(src=CLIENT4, dst=server4(1), id=4243, ttl=60) / sctp(5000, 80, "DATA")
    it.send("s", from_server(1, CLIENT4) / ICMP(type=3, code=2) / Raw(bytes(inner)[:28]), "server's side 3/2")
    it.run(CONNECTIONS)
    return it


def all_cases():
    """Functions that record, by the name of what they record."""
    gue, gre = "--tun-type gue --tun-port 6080", "--tun-type gre"
    tunnels = (
        ("v6-tun-headers", VIP6, server6(1), "", "6 in 6"),
        ("v6-tun-6in4", VIP6, server4(1), "", "6 in 4"),
        ("v6-tun-4in6", VIP4, server6(1), "", "4 in 6"),
        ("v6-tun-gue", VIP6, server6(1), f"{gue} --tun-nocsum", "GUE, 6 in 6"),
        ("v6-tun-gue-csum", VIP6, server6(1), f"{gue} --tun-csum", "GUE with checksum, 6 in 6"),
        ("v6-tun-gue-6in4", VIP6, server4(1), f"{gue} --tun-nocsum", "GUE, 6 in 4"),
        ("v6-tun-gue-4in6", VIP4, server6(1), f"{gue} --tun-nocsum", "GUE, 4 in 6"),
        ("v6-tun-gre", VIP6, server6(1), f"{gre} --tun-nocsum", "GRE, 6 in 6"),
        ("v6-tun-gre-csum", VIP6, server6(1), f"{gre} --tun-csum", "GRE with checksum, 6 in 6"),
        ("v6-tun-gre-6in4", VIP6, server4(1), f"{gre} --tun-nocsum", "GRE, 6 in 4"),
        ("v6-tun-gre-4in6", VIP4, server6(1), f"{gre} --tun-nocsum", "GRE, 4 in 6"),
    )
    cases = {
        "v6-dr-tcp-states": dr_states,
        "v6-nat-tcp-states": nat_states,
        "v6-nat-tcp-states-client-close": nat_client_close,
        "v6-nat-icmp-send": nat_icmp_send,
        "v6-udp-ops": udp_one_packet,
        "v6-tun-icmp-from-path": tunnel_path_errors,
        "v6-no-destination": no_destination,
        "v6-quiesce": quiesce,
        "v6-thresholds": thresholds,
        "v6-sctp-nat": sctp_life("nat", VIP6, "v6-"),
        "sctp-first-chunk": sctp_first_chunks("sctp-first-chunk", 0, "what opens an association"),
        "sctp-sloppy": sctp_first_chunks("sctp-sloppy", 1, "sloppy_sctp=1: what opens an association"),
        "sctp-chunk-pairs": sctp_chunk_pairs,
        "sctp-icmp-nat": sctp_icmp,
    }
    for method in METHODS:
        cases[f"v6-udp-{method}"] = udp_service(method)
        cases[f"v6-icmp-{method}"] = icmp(method)
        cases[f"v6-frag-{method}"] = fragmented(method)
        cases[f"sctp-{method}"] = sctp_life(method)
    cases.update({f"v6-persist-{kind}": persistence(kind) for kind in ("ppc", "pcc", "prefix", "fwmark")})
    cases.update(sctp_pairs(first, "c") for first in ("INIT", "INIT-ACK", "COOKIE-ECHO", "SHUTDOWN", "ABORT"))
    servers_first = ("INIT", "INIT-ACK", "COOKIE-ECHO", "COOKIE-ACK", "SHUTDOWN", "ERROR", "ABORT")
    cases.update(sctp_pairs(first, "s") for first in servers_first)
    for method in ("dr", "nat"):
        cases[f"v6-{method}-headers"] = headers(method)
        cases[f"v6-{method}-too-big"] = too_big(method)
    cases.update({f"v6-conn-reuse-{mode}": port_reuse(mode) for mode in (0, 1)})
    cases.update({row[0]: tunnel(*row) for row in tunnels})
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", default=Path(__file__).resolve().parents[1] / "cases", type=Path)
    parser.add_argument("cases", nargs="*")
    wanted = parser.parse_args()
    cases = all_cases()
    if unknown := set(wanted.cases) - set(cases):
        parser.error(f"no such case: {' '.join(sorted(unknown))}")
    with Lab() as lab:
        for name in wanted.cases or cases:
            recorded = cases[name](lambda *words: Case(lab, *words))
            assert recorded.case["name"] == name, (recorded.case["name"], name)
            recorded.save(wanted.into)
            print(f"{name}: {len(recorded.case['steps'])} steps", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
