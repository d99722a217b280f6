"""The kernel under test between two ports: c, where its clients' router is, and s, where its real servers are.

A network namespace holds two veth pairs. The kernel (`scripts/oracle-kernel`) has one end of each, as vec0 and vec1;
this process writes and reads frames at the others, and answers for everybody.
"""

import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

from scapy.all import ARP, ICMP, IP, Ether

from frames import DIRECTOR_MAC, ROUTER_MAC, SERVER_MAC, in_words, server4

ORACLE_KERNEL = Path(__file__).resolve().parents[3] / "scripts/oracle-kernel"


def load(path):
    """A program as a module; nothing is written beside it."""
    sys.dont_write_bytecode = True
    name = path.name.replace("-", "_")
    module = module_from_spec(spec_from_loader(name, SourceFileLoader(name, str(path))))
    module.__loader__.exec_module(module)
    return module


oracle_kernel = load(ORACLE_KERNEL)
# How long an answer may take, and how long it must then be quiet.
ANSWER_SECONDS, QUIET_SECONDS = 0.15, 0.012
# How long the answer to an echo request may take, and what was sent before it may lag behind.
ECHO_SECONDS, ECHO_QUIET_SECONDS = 5, 0.004
# Time that goes by unrecorded: less than listings may differ by.
NOTICED_SECONDS = 0.5
IPV4, ARP_TYPE, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
# ICMPv6 that hosts say on their own: multicast listeners, routers, neighbours.
CHATTER = {130, 131, 132, 133, 134, 135, 136, 137, 143}

SERVERS = " ".join(str(10 + number) for number in SERVER_MAC)
SETUP = f"""
modprobe ipv6
sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0 net.ipv6.auto_flowlabels=0
for i in vec0 vec1; do
    sysctl -qw net.ipv6.conf.$i.disable_ipv6=0 net.ipv6.conf.$i.accept_dad=0 net.ipv6.conf.$i.dad_transmits=0
    sysctl -qw net.ipv6.conf.$i.addr_gen_mode=1 net.ipv6.conf.$i.router_solicitations=0 net.ipv6.conf.$i.accept_ra=0
    sysctl -qw net.ipv4.conf.$i.rp_filter=0 net.ipv4.conf.$i.send_redirects=0
    ip link set $i up
done
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.send_redirects=0
sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=100000
sysctl -qw net.ipv6.icmp.ratelimit=0
ip addr add 10.88.1.254/24 dev vec0
ip addr add 10.88.2.254/24 dev vec1
ip addr add fd88:1::fe/64 dev vec0 nodad
ip addr add fd88:2::fe/64 dev vec1 nodad
ip neigh replace 10.88.1.1 lladdr {ROUTER_MAC} dev vec0 nud permanent
ip neigh replace fd88:1::1 lladdr {ROUTER_MAC} dev vec0 nud permanent
for i in {SERVERS}; do
    mac=02:00:0a:58:02:$(printf %02x $i)
    ip neigh replace 10.88.2.$i lladdr $mac dev vec1 nud permanent
    ip neigh replace fd88:2::$i lladdr $mac dev vec1 nud permanent
done
ip route add 10.88.128.0/17 via 10.88.1.1
ip route add fd88:80::/32 via fd88:1::1
for i in $(seq 100 120); do
    ip addr add 10.88.0.$i/32 dev lo
    ip addr add fd88::$i/128 dev lo nodad
done
"""

# Everything as it was after the kernel's start. With the modules go settings, connections, and fragments that wait
# for others. Fails where a module cannot be unloaded, or fragments wait in the kernel itself.
RESET = """
ipvsadm --stop-daemon master; ipvsadm --stop-daemon backup; ipvsadm -C
for command in iptables-legacy ip6tables-legacy; do $command -t mangle -F; done
ip route flush cache; ip -6 route flush cache
for i in $(seq 100); do
    modules=$(grep -oE '^(ip_vs|xt_ipvs|nf_nat|nf_conntrack|nf_defrag)[a-z0-9_]*' /proc/modules) || break
    rmmod $modules
    sleep 0.05
done 2>/dev/null
! grep -qE '^(ip_vs|nf_defrag)' /proc/modules &&
    grep -q '^FRAG: inuse 0 ' /proc/net/sockstat && grep -q '^FRAG6: inuse 0 ' /proc/net/sockstat6 && modprobe ip_vs
"""


# Whose echo requests ask whether the kernel is done with what was sent before, and its own address there.
ASKERS = {"c": (ROUTER_MAC, "10.88.1.1", "10.88.1.254"), "s": (SERVER_MAC[5], server4(5), "10.88.2.254")}
# Fields of the echo's ICMP header: nobody else asks with this identifier.
ECHO_IDENTIFIER = 0xA5C3


def echo_request(port, number):
    mac, source, destination = ASKERS[port]
    packet = IP(src=source, dst=destination, id=0) / ICMP(id=ECHO_IDENTIFIER, seq=number & 0xFFFF)
    return bytes(Ether(src=mac, dst=DIRECTOR_MAC[port]) / packet)


def is_echo_reply(frame, number):
    fields = ECHO_IDENTIFIER.to_bytes(2, "big") + (number & 0xFFFF).to_bytes(2, "big")
    return frame[12:14] == IPV4 and frame[23] == 1 and frame[34:36] == b"\0\0" and frame[38:42] == fields


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


class Lab:
    """A namespace and a kernel, as long as a `with` block lasts."""

    def __init__(self):
        self.name = f"uvs-oracle-{os.getpid()}"
        self.ports = {}
        self.echoes = 0

    def __enter__(self):
        try:
            self.make_namespace()
            self.open_ports()
            self.start_kernel()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for port in self.ports.values():
            port.close()
        self.kernel("stop")
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)

    def make_namespace(self):
        run("ip", "netns", "add", self.name)
        inside = ("ip", "netns", "exec", self.name)
        # The host's ends only carry frames.
        run(*inside, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        run(*inside, "sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=8")
        for port in "cs":
            ends = f"{port}0", f"{port}1"
            run("ip", "-n", self.name, "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for end in ends:
                run(*inside, "ethtool", "-K", end, "tx", "off")
                run("ip", "-n", self.name, "link", "set", end, "up")

    def open_ports(self):
        """Opens the packet sockets inside the namespace, and comes back."""
        setns = ctypes.CDLL(None, use_errno=True).setns
        with open("/proc/self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            if setns(there.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                for name in "cs":
                    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
                    self.ports[name] = port
                    port.bind((f"{name}0", 0))
                    port.setblocking(False)
                    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            finally:
                if setns(home.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")

    def kernel(self, *words):
        command = [ORACLE_KERNEL, "--name", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True)

    def start_kernel(self):
        interfaces = [f"{port}1={mac}" for port, mac in DIRECTOR_MAC.items()]
        started = self.kernel("start", "--namespace", self.name, *interfaces)
        if started.returncode:
            raise RuntimeError(started.stderr)
        printed = self.shell(SETUP)
        if printed != ("", "", 0):
            raise RuntimeError(f"setting the kernel up: {printed}")
        self.version = self.shell("uname -r")[0].strip()

    def shell(self, command, timeout=60):
        """Standard output, standard error and exit status of a line run in the kernel."""
        stdout, stderr, status = oracle_kernel.Kernel(self.name).execute(command, timeout)
        return stdout.decode(errors="replace"), stderr.decode(errors="replace"), status

    def reset(self):
        if self.shell(RESET)[2]:
            # A connection of the FTP helper, for one, holds its module for ever.
            self.kernel("stop")
            self.start_kernel()
        self.receive(0.02, quiet=None)

    def receive(self, seconds, quiet=QUIET_SECONDS):
        """What comes out of the ports: until it has been quiet after a frame, or the time is over."""
        frames, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable = select.select(list(self.ports.values()), [], [], left)[0]
            for name, port in self.ports.items():
                if port not in readable:
                    continue
                frame, address = port.recvfrom(65535)
                if address[2] == socket.PACKET_OUTGOING or self.is_chatter(name, frame):
                    continue
                frames.append((name, frame))
                if quiet is not None:
                    end = min(end, time.monotonic() + quiet)
        return frames

    def is_chatter(self, port, frame):
        """Whether a frame is the hosts' own business; questions for link addresses are answered."""
        if frame[12:14] == IPV6:
            at = 62 if frame[20] == 0 else 54
            return 58 in (frame[20], frame[54]) and frame[at] in CHATTER
        if frame[12:14] != ARP_TYPE:
            return False
        question = Ether(frame)[ARP]
        known = {server4(number): mac for number, mac in SERVER_MAC.items()}
        mac = ROUTER_MAC if port == "c" else known.get(question.pdst)
        if question.op == 1 and mac:
            answer = ARP(op=2, hwsrc=mac, psrc=question.pdst, hwdst=question.hwsrc, pdst=question.psrc)
            self.ports[port].send(bytes(Ether(src=mac, dst=question.hwsrc) / answer))
        return True

    def send(self, port, frame, seconds=ANSWER_SECONDS):
        """Gives the kernel a frame, and returns what it sends for it."""
        self.ports[port].send(frame)
        return self.receive(seconds)

    def exchange(self, port, frame):
        """The same, for a frame that the kernel answers at once or not at all.

        An echo request goes after it by the same way: when that is answered, all that the kernel has to say to the frame
        is there. So a frame without an answer takes no longer than another, however busy the machine is.
        """
        self.echoes += 1
        self.ports[port].send(frame)
        self.ports[port].send(echo_request(port, self.echoes))
        answers, end = [], time.monotonic() + ECHO_SECONDS
        while time.monotonic() < end:
            frames = self.receive(ECHO_SECONDS, quiet=0)
            rest = [(name, answer) for name, answer in frames if not is_echo_reply(answer, self.echoes)]
            answers += rest
            if len(rest) < len(frames):
                return answers + self.receive(ECHO_QUIET_SECONDS)
        raise RuntimeError("the kernel does not answer any more")


class Recorder:
    """A case while it is recorded."""

    def __init__(self, lab, name, setup, description):
        lab.reset()
        self.lab = lab
        setup = [line for line in setup.strip().split("\n") if line]
        self.case = {"name": name, "description": description, "kernel": f"{lab.version} (Debian UML)", "setup": setup}
        self.case["setup_out"] = list(lab.shell("\n".join(setup)))
        self.case["steps"] = []
        if self.case["setup_out"] != ["", "", 0]:
            print(f"{name}: setup: {self.case['setup_out']}")
        lab.receive(0.02, quiet=None)
        self.recorded_until = time.monotonic()

    def add(self, step):
        """Adds a step, and a sleep for the time that it took, where that would show in a listing's timers."""
        self.case["steps"].append(step)
        lag = round(time.monotonic() - self.recorded_until, 1)
        if lag >= NOTICED_SECONDS:
            self.case["steps"].append({"sleep": lag})
            self.recorded_until += lag

    def send(self, port, packet, note=None, seconds=ANSWER_SECONDS):
        frame = bytes(packet)
        answers = self.lab.send(port, frame, seconds)
        self.add_exchange(port, frame, answers, {"note": note} if note else {})
        return [answer for _, answer in answers]

    def add_exchange(self, port, frame, answers, more):
        step = {"send": {"port": port, "hex": frame.hex(), "desc": in_words(frame)}, **more}
        step["recv"] = [{"port": name, "hex": answer.hex(), "desc": in_words(answer)} for name, answer in answers]
        self.add(step)

    def exchange(self, port, frame, **more):
        """`send`, for a frame that is answered at once or not at all; `more` is written into the step."""
        answers = self.lab.exchange(port, frame)
        self.add_exchange(port, frame, answers, more)
        return [answer for _, answer in answers]

    def run(self, command):
        stdout, stderr, status = self.lab.shell(command)
        self.add({"exec": command, "stdout": stdout, "stderr": stderr, "rc": status})

    def sleep(self, seconds):
        time.sleep(seconds)
        self.recorded_until += seconds
        self.add({"sleep": seconds})

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.case, indent=1) + "\n"
        (Path(folder) / f"{self.case['name']}.json").write_text(text)
