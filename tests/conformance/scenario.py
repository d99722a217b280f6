"""Random rules and packets, from a seed.

A sequence is a list of steps that can be told in JSON and stand alone, so that any of them can be left out to make a
failing sequence shorter. `client`, `server`, `error` and `datagram` become frames in packets.py; `command`, `list`
and `sleep` are what they say.

Each sequence draws what it is about (families, protocols, schedulers, settings, which kinds of steps), rather than all
of everything every time: what interferes with nothing else gets deeper that way. `features` of a step are counted in the
coverage table.
"""

import random
from dataclasses import dataclass, field

# What the director has: what it refuses is left out. Methods are ipvsadm's letters.
METHODS = {"dr": "-g", "nat": "-m"}
ONE_PACKET = False
PERSISTENCE = True
MARKS = True
DATAGRAMS = True
# Methods of connections about which there are ICMP errors.
ICMP_ERRORS = ("dr",)

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh")
SCHEDULER_FLAGS = {
    "sh": ("", "-b sh-fallback", "-b sh-port", "-b sh-fallback,sh-port"),
    "mh": ("", "-b mh-fallback", "-b mh-port", "-b mh-fallback,mh-port"),
}
KINDS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}
SETTINGS = {
    "expire_nodest_conn": (0, 1),
    "conn_reuse_mode": (0, 1, 2, 3),
    "sloppy_tcp": (0, 1),
    "expire_quiescent_template": (0, 1),
}
SERVERS = (1, 2, 3, 4, 5)
PORTS = {"tcp": (80, 443, 8000), "udp": (53, 123, 5000), "sctp": (80, 2905, 3868)}
# ICMP errors: type and code of each family.
ERRORS = {4: ((3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (5, 1)), 6: ((1, 0), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0))}
TCP_FLAGS = ("S", "A", "PA", "FA", "R", "RA", "SA", "", "F", "SF", "SR", "FPU", "P", "SEC")
CHUNKS = (
    *("INIT", "COOKIE-ECHO", "DATA", "SACK", "HEARTBEAT", "SHUTDOWN", "SHUTDOWN-ACK", "SHUTDOWN-COMPLETE"),
    *("ABORT", "ERROR", "INIT-ACK", "COOKIE-ACK"),
)
CONNECTIONS = "ipvsadm -Lnc | tail -n +3 | sort"
SAVE = "ipvsadm -S -n"
LISTINGS = (
    CONNECTIONS,
    "ipvsadm -Ln",
    "ipvsadm -Ln --thresholds",
    "ipvsadm -Ln --persistent-conn",
    SAVE,
    "ipvsadm -L --timeout",
    "ipvsadm -Ln --stats",
)


def client_address(family, number):
    return f"10.88.128.{number}" if family == 4 else f"fd88:80::{number:x}"


def virtual_address(family, number):
    return f"10.88.0.{100 + number}" if family == 4 else f"fd88::{100 + number}"


def server_address(family, number):
    return f"10.88.2.{10 + number}" if family == 4 else f"fd88:2::{10 + number}"


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass
class Server:
    """A real server of a service, as the commands so far have made it."""

    number: int
    weight: int


@dataclass
class Service:
    """A virtual service, as the commands so far have made it."""

    family: int
    protocol: str
    number: int
    port: int
    method: str
    server_port: int
    scheduler: str
    flags: str
    # By which it is found; 0 for one that is found by its address and port, which then are only what is marked.
    mark: int = 0
    # `-p` and what goes with it, and whether it is for all ports.
    persistence: str = ""
    all_ports: bool = False
    servers: list = field(default_factory=list)

    @property
    def address(self):
        return virtual_address(self.family, self.number)

    @property
    def name(self):
        if self.mark:
            return f"-f {self.mark}{' -6' if self.family == 6 else ''}"
        return f"{KINDS[self.protocol]} {endpoint(self.address, 0 if self.all_ports else self.port)}"

    @property
    def specification(self):
        return " ".join(word for word in ("-s", self.scheduler, self.flags, self.persistence) if word)

    def real(self, number):
        return endpoint(server_address(self.family, number), 0 if self.mark or self.all_ports else self.server_port)


class Scenario:
    """One sequence: `setup`, commands that all succeed, and `steps`."""

    def __init__(self, seed, length):
        self.seed = seed
        self.random = random.Random(seed)
        self.services, self.flows, self.steps = [], [], []
        self.next_port = 5000
        self.draw_subject()
        self.setup = self.make_setup()
        while len(self.steps) < length:
            self.pick_action()()
        self.list_everything()

    # What the sequence is about.

    def draw_subject(self):
        some = self.random.sample
        choose = self.random.choice
        self.families = choose(((4,), (4,), (6,), (6,), (4, 6)))
        self.protocols = choose((("tcp",), ("tcp",), ("udp",), ("sctp",), ("tcp", "udp"), ("tcp", "udp", "sctp")))
        self.schedulers = some(SCHEDULERS, 3)
        self.methods = some(sorted(METHODS), self.random.randint(1, len(METHODS)))
        self.clients = self.random.randint(1, 12)
        self.settings = some(sorted(SETTINGS), self.random.randint(0, len(SETTINGS)))
        self.has_thresholds = self.chance(0.3)
        self.has_odd_headers = self.chance(0.5)
        self.has_mistakes = self.chance(0.3)
        # Connections that end while the sequence goes on; only then is there something to wait for.
        self.has_short_timeouts = self.chance(0.25)
        self.has_persistence = PERSISTENCE and self.chance(0.35)
        self.has_marks = MARKS and self.chance(0.25)
        self.has_datagrams = DATAGRAMS and self.chance(0.3)
        self.waits = 1 if self.has_short_timeouts else 0
        self.weights = {
            self.new_flow: 30,
            self.known_flow: 30,
            self.server_packet: 25 if "nat" in self.methods else 0,
            self.stray: 4,
            self.error: 6 if ICMP_ERRORS and self.chance(0.4) else 0,
            self.edit_server: self.chance(0.7) * self.random.randint(1, 12),
            self.change_servers: self.chance(0.6) * self.random.randint(1, 8),
            self.edit_service: self.chance(0.5) * 3,
            self.change_services: self.chance(0.5) * 4,
            self.change_setting: 2 if self.settings else 0,
            self.mistake: 3 if self.has_mistakes else 0,
            self.list_something: 8,
            self.wait: 2 if self.waits else 0,
            self.datagram: 6 if self.has_datagrams else 0,
        }

    def chance(self, probability):
        return self.random.random() < probability

    def pick_action(self):
        actions = [action for action, weight in self.weights.items() if weight]
        return self.random.choices(actions, [self.weights[action] for action in actions])[0]

    # Rules.

    def make_setup(self):
        lines = []
        for _ in range(self.random.randint(1, 3)):
            lines += self.new_service(self.random.randint(1, 5))
        for name in self.settings:
            if self.chance(0.6):
                lines.append(f"sysctl -qw net.ipv4.vs.{name}={self.random.choice(SETTINGS[name])}")
        if self.has_short_timeouts:
            lines.append("ipvsadm --set 9 6 7")
        return lines

    def new_service(self, servers):
        """Commands that add one, unless there is one of that name."""
        choose = self.random.choice
        protocol = choose(self.protocols)
        method = choose(self.methods)
        port = choose(PORTS[protocol])
        scheduler, flags = self.draw_scheduler()
        server_port = port if method != "nat" or self.chance(0.5) else port + 10_000
        service = Service(
            choose(self.families), protocol, self.random.randint(0, 2), port, method, server_port, scheduler, flags
        )
        if self.has_marks and self.chance(0.6):
            service.mark = self.random.randint(1, 3)
        self.draw_persistence(service)
        if service.name in (known.name for known in self.services):
            return []
        self.services.append(service)
        lines = self.mark_rules(service) if service.mark else []
        lines.append(f"ipvsadm -A {service.name} {service.specification}")
        for number in self.random.sample(SERVERS, servers):
            lines.append(self.add_server(service, number))
        return lines

    def draw_persistence(self, service, again=False):
        if not self.has_persistence or not (again or self.chance(0.8)):
            return
        service.persistence = f"-p {self.random.choice((30, 50, 100))}"
        if self.chance(0.4):
            masks = ("255.255.255.255", "255.255.255.252", "255.255.255.0") if service.family == 4 else (128, 126, 64)
            service.persistence += f" -M {self.random.choice(masks)}"
        if not service.mark and not again:
            service.all_ports = self.chance(0.3)

    def mark_rules(self, service):
        """Marks what is for the service's address and port; rules stay when it goes."""
        program = "iptables-legacy" if service.family == 4 else "ip6tables-legacy"
        where = f"-d {service.address} -p {service.protocol} --dport {service.port}"
        return [f"{program} -t mangle -A PREROUTING {where} -j MARK --set-mark {service.mark}"]

    def draw_scheduler(self):
        scheduler = self.random.choice(self.schedulers)
        return scheduler, self.random.choice(SCHEDULER_FLAGS.get(scheduler, ("",)))

    def draw_weight(self):
        return self.random.choice((0, 1, 1, 1, 2, 2, 3, 4, 5, 10))

    def draw_thresholds(self):
        if not self.has_thresholds or self.chance(0.4):
            return ""
        upper = self.random.randint(1, 6)
        lower = self.random.randint(0, upper)
        return f" -x {upper}" + (f" -y {lower}" if lower else "")

    def add_server(self, service, number):
        weight = self.draw_weight()
        service.servers.append(Server(number, weight))
        return (
            f"ipvsadm -a {service.name} -r {service.real(number)} {METHODS[service.method]} -w {weight}"
            f"{self.draw_thresholds()}"
        )

    # Steps.

    def add(self, do, features, **step):
        self.steps.append({"do": do, **step, "features": sorted(features)})

    def command(self, line, *features):
        self.add("command", features, line=line)

    def edit_server(self):
        service = self.random.choice(self.services) if self.services else None
        if not service or not service.servers:
            return
        server = self.random.choice(service.servers)
        was, server.weight = server.weight, self.draw_weight()
        thresholds = self.draw_thresholds()
        features = ["server edited"]
        features += ["server edited: thresholds"] * bool(thresholds)
        features += ["server quiesced (weight 0)"] * (was > 0 and server.weight == 0)
        features += ["server back from weight 0"] * (was == 0 and server.weight > 0)
        self.command(
            f"ipvsadm -e {service.name} -r {service.real(server.number)} {METHODS[service.method]} "
            f"-w {server.weight}{thresholds}",
            *features,
        )

    def change_servers(self):
        if not self.services:
            return
        service = self.random.choice(self.services)
        absent = [number for number in SERVERS if number not in [server.number for server in service.servers]]
        if service.servers and (not absent or self.chance(0.5)):
            server = self.random.choice(service.servers)
            service.servers.remove(server)
            self.command(f"ipvsadm -d {service.name} -r {service.real(server.number)}", "server removed")
        else:
            self.command(self.add_server(service, self.random.choice(absent)), "server added")

    def edit_service(self):
        if not self.services:
            return
        service = self.random.choice(self.services)
        service.scheduler, service.flags = self.draw_scheduler()
        if service.persistence and self.chance(0.5):
            self.draw_persistence(service, again=True)
        line = f"ipvsadm -E {service.name} {service.specification}"
        self.command(line, "service edited", f"scheduler {service.scheduler}")

    def change_services(self):
        # There is always a service of the family: without any, the kernel gives packets of known connections to the host,
        # which is a deliberate difference.
        families = [service.family for service in self.services]
        can_go = [service for service in self.services if families.count(service.family) > 1]
        if can_go and self.chance(0.5):
            service = self.random.choice(can_go)
            self.services.remove(service)
            self.command(f"ipvsadm -D {service.name}", "service removed")
        elif len(self.families) == 1 and self.chance(0.2):
            self.services.clear()
            self.command("\n".join(["ipvsadm -C", *self.new_service(2)]), "all services removed")
        else:
            lines = self.new_service(self.random.randint(0, 3))
            if lines:
                self.command("\n".join(lines), "service added")

    def change_setting(self):
        name = self.random.choice(self.settings)
        value = self.random.choice(SETTINGS[name])
        self.command(f"sysctl -qw net.ipv4.vs.{name}={value}", f"setting {name}")

    def mistake(self):
        """A command that fails, or may."""
        if not self.services:
            return
        service = self.random.choice(self.services)
        number = self.random.choice(SERVERS)
        self.command(
            self.random.choice(
                (
                    f"ipvsadm -A {service.name} -s rr",
                    f"ipvsadm -A {service.name} -s nosuch",
                    f"ipvsadm -E {KINDS[service.protocol]} {endpoint(service.address, 9)} -s rr",
                    f"ipvsadm -D {KINDS[service.protocol]} {endpoint(service.address, 9)}",
                    f"ipvsadm -e {service.name} -r {endpoint(server_address(service.family, number), 9)} -g -x 5 -y 9",
                    f"ipvsadm -d {service.name} -r {endpoint(server_address(service.family, 9), 9)}",
                    f"ipvsadm -d {KINDS[service.protocol]} {endpoint(service.address, 9)} -r {service.real(number)}",
                )
            ),
            "command that fails",
        )

    def list_something(self):
        line = self.random.choice(LISTINGS)
        if line == SAVE and (self.has_thresholds or self.has_marks):
            # The kernel's tool leaves both out: a deliberate difference.
            line = CONNECTIONS
        self.add("list", [f"listing {line.split(' | ')[0]}"], line=line)

    def list_everything(self):
        self.add("list", [f"listing {CONNECTIONS.split(' | ')[0]}"], line=CONNECTIONS)
        self.add("list", ["listing ipvsadm -Ln"], line="ipvsadm -Ln")
        uncounted = self.has_odd_headers or self.has_datagrams or self.weights[self.error]
        if not uncounted and self.chance(0.5):
            # The kernel copies its counters every two seconds. It counts ICMP errors, too, those that it makes itself
            # among them (a time to live of 1), and IPv6's fragments without their headers: not so the director.
            line = "sleep 2.5; ipvsadm -Ln --stats --exact"
            self.add("list", ["listing ipvsadm -Ln --stats, counters"], line=line, settled=True)

    def wait(self):
        # Not within a second of a short timeout: 4 (SCTP that is shut down), 6, 7, 9 (as set here), and 10.
        self.waits -= 1
        self.weights[self.wait] = 2 if self.waits else 0
        self.add("sleep", ["wait"], seconds=self.random.choice((5, 8)))

    # Packets.

    def new_flow(self):
        if not self.services:
            return self.stray()
        service = self.random.choice(self.services)
        self.next_port += 1
        flow = {
            "family": service.family,
            "protocol": service.protocol,
            "client": client_address(service.family, self.random.randint(1, self.clients)),
            "port": self.next_port,
            "vip": service.address,
            "to_port": service.port,
            "method": service.method,
        }
        if service.all_ports and self.chance(0.5):
            flow["to_port"] = self.random.randint(1, 9999)
        self.flows.append(flow)
        features = [f"scheduler {service.scheduler}", f"method {service.method}", "new connection"]
        features += [f"flags {service.flags}"] * bool(service.flags)
        features += ["service by mark"] * bool(service.mark)
        features += ["persistent service"] * bool(service.persistence)
        features += ["persistent service with a netmask"] * ("-M" in service.persistence)
        features += ["service of all ports"] * service.all_ports
        self.client(flow, {"tcp": "S", "udp": "", "sctp": "INIT"}[service.protocol], features)
        if service.protocol != "udp" and self.chance(0.6):
            self.client(flow, {"tcp": "A", "sctp": "COOKIE-ECHO"}[service.protocol], ["known connection"])

    def known_flow(self):
        if not self.flows:
            return
        # The latest more often: they are still there.
        flow = self.random.choice(self.flows[-6:] if self.chance(0.7) else self.flows)
        self.client(flow, self.draw_content(flow["protocol"]), ["known connection"])

    def server_packet(self):
        """A packet of the real server that has a connection, whichever that is; of one that has not, if none has."""
        flows = [flow for flow in self.flows if flow["method"] == "nat"]
        if not flows:
            return self.new_flow()
        flow = self.random.choice(flows[-4:] if self.chance(0.7) else flows)
        match flow["protocol"]:
            case "tcp":
                content = self.random.choice(("SA", "SA", "A", "PA", "FA", "R", self.random.choice(TCP_FLAGS)))
            case "sctp":
                content = self.random.choice(("INIT-ACK", "COOKIE-ACK", "SACK", self.random.choice(CHUNKS)))
            case _:
                content = ""
        self.packet("server", flow, content, ["real server's packet"])

    def error(self):
        """An ICMP error about a connection: from the clients' side, or, of NAT, from the real servers'."""
        flows = [flow for flow in self.flows[-8:] if flow["method"] in ICMP_ERRORS]
        if not flows:
            return self.new_flow()
        flow = self.random.choice(flows)
        side = "s" if flow["method"] == "nat" and self.chance(0.4) else "c"
        kind = self.random.choice(ERRORS[flow["family"]])
        features = [f"ICMP error from side {side}", f"ICMP error IPv{flow['family']} {kind[0]}/{kind[1]}"]
        self.add("error", features, flow=flow, side=side, kind=kind, size=self.random.choice((0, 100)))

    def draw_content(self, protocol):
        """TCP flags, or an SCTP chunk: more often one that opens or closes, or is usual."""
        match protocol:
            case "tcp":
                return self.random.choice(("A", "PA", "PA", "FA", "R", "S", self.random.choice(TCP_FLAGS)))
            case "sctp":
                return self.random.choice(("DATA", "SHUTDOWN", "INIT", self.random.choice(CHUNKS)))
        return ""

    def stray(self):
        """A packet that belongs to nothing: no such connection, or no such service."""
        family, protocol = self.random.choice(self.families), self.random.choice(self.protocols)
        self.next_port += 1
        has_service = self.services and self.chance(0.6)
        service = self.random.choice(self.services) if has_service else None
        flow = {
            "family": service.family if service else family,
            "protocol": service.protocol if service else protocol,
            "client": client_address(service.family if service else family, self.random.randint(1, self.clients)),
            "port": 20 if self.chance(0.1) else self.next_port,
            "vip": service.address if service else virtual_address(family, self.random.randint(0, 3)),
            "to_port": service.port if service else 7777,
        }
        if flow["protocol"] == "tcp":
            content = self.random.choice(TCP_FLAGS)
        else:
            content = self.random.choice(CHUNKS) if flow["protocol"] == "sctp" else ""
        features = ["packet of no connection" if service else "packet to no service"]
        self.client(flow, content, features + ["source port 20"] * (flow["port"] == 20))

    def client(self, flow, content, features):
        self.packet("client", flow, content, features)

    def packet(self, whose, flow, content, features):
        """A packet of a connection: TCP flags or an SCTP chunk, with a header that may be unusual."""
        header = self.draw_header(flow["family"], flow["protocol"]) if self.has_odd_headers else {}
        if whose == "server" or "known connection" in features:
            # The kernel passes on what has ports, and no whole header behind them: a deliberate difference.
            header.pop("cut short", None)
        size = self.random.choice((0, 0, 1, 10, 100, 1200, 1400))
        features = [*features, f"IPv{flow['family']}", flow["protocol"].upper()]
        if flow["protocol"] == "tcp":
            features.append(f"TCP {content or 'no flags'}")
        elif flow["protocol"] == "sctp":
            features.append(f"SCTP {content}")
        features += [f"header: {name}" for name in header]
        self.add(whose, features, flow=flow, content=content, size=size, header=header)

    def draw_header(self, family, protocol):
        match self.random.randint(0, 9):
            case 0:
                return {"hops": self.random.choice((1, 2, 255))}
            case 1:
                return {"class": self.random.choice((0x10, 0x01, 0x03, 0xB8, 0xFF))}
            case 2:
                return {"dont fragment": 1} if family == 4 else {"flow label": 0x12345}
            case 3 if self.chance(0.5):
                return {"wrong checksum": 1}
            case 4 if protocol == "tcp" and self.chance(0.5):
                return {"cut short": 1}
            case 5:
                return {"padding": 6}
            case 6 if family == 4 and self.chance(0.5):
                return {"wrong header checksum": 1}
            case 7 if protocol == "udp" and family == 4:
                return {"no checksum": 1}
            case 8 if family == 4 and self.chance(0.5):
                return {"options": 1}
        return {}

    def datagram(self):
        """A UDP datagram in fragments, all of which arrive, in some order."""
        services = [service for service in self.services if service.protocol == "udp"]
        if not services:
            return self.known_flow()
        service = self.random.choice(services)
        self.next_port += 1
        flow = {
            "family": service.family,
            "protocol": "udp",
            "client": client_address(service.family, self.random.randint(1, self.clients)),
            "port": self.next_port,
            "vip": service.address,
            "to_port": service.port,
            "method": service.method,
        }
        # Larger than IPv6's fragment header, so that the whole is longer than a fragment: else the kernel sends it whole.
        size, count = self.random.choice((16, 64, 512, 1400)), self.random.randint(2, 4)
        order = self.random.sample(range(count), count)
        way = "in order" if order == sorted(order) else "out of order"
        features = ["fragments", f"IPv{service.family}", f"fragments {way}", f"fragments, method {service.method}"]
        self.add("datagram", features, flow=flow, size=size, count=count, order=order)
