#!/usr/bin/python3
"""Records the smallest sequences that show where the director differs from the kernel on purpose.

    differences.py [NAME ...]

README.md says why, with the names. A random sequence has none of this in it. Needs what record.py needs.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracle/kernel"))

from frames import CLIENT4, from_client, tcp  # noqa: E402
from lab import Lab, Recorder  # noqa: E402

SERVICE = "ipvsadm -A -t 10.88.0.100:80 -s rr\nipvsadm -a -t 10.88.0.100:80 -r 10.88.2.11:80 -g"


def save_thresholds(lab):
    it = Recorder(lab, "save-thresholds", f"{SERVICE} -x 5 -y 2", "ipvsadm -S leaves thresholds out")
    it.run("ipvsadm -S -n")
    return it


def short_header(lab):
    it = Recorder(lab, "short-header", SERVICE, "ten bytes of a TCP header, for a known connection")
    it.exchange("c", bytes(from_client(CLIENT4, id=0x4001) / tcp(5000, 80)))
    segment = bytes(tcp(5000, 80, "A", 1001, 5001))[:10]
    it.exchange("c", bytes(from_client(CLIENT4, id=0x4002, proto=6) / segment))
    return it


def no_services(lab):
    it = Recorder(lab, "no-services", SERVICE, "a packet of a known connection when the last service is gone")
    it.exchange("c", bytes(from_client(CLIENT4, id=0x4001) / tcp(5000, 80)))
    it.run("ipvsadm -C")
    it.exchange("c", bytes(from_client(CLIENT4, id=0x4002) / tcp(5000, 80, "A", 1001, 5001)))
    return it


CASES = {"save-thresholds": save_thresholds, "short-header": short_header, "no-services": no_services}


def main():
    with Lab() as lab:
        for name in sys.argv[1:] or CASES:
            recorded = CASES[name](lab)
            assert recorded.case["name"] == name
            recorded.save(HERE / "differences")
            print(f"{name}: {len(recorded.case['steps'])} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
