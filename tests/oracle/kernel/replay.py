#!/usr/bin/python3
"""Gives the kernel what was recorded, and says where it answers otherwise.

    replay.py [-v] FILE...        e.g. ../cases/v6-*.json ../seq/wrr-321.json

What may differ from run to run is not compared: see frames.comparable, and two seconds in listings. A recording with
counters that were read within two seconds of the packets (`--stats` of some older ones) can differ in those.
"""

import argparse
import json
import re
import sys
import time

from frames import SERVER_MAC, comparable, from_client, tcp
from lab import Lab

SEGMENTS = {"syn": ("S", 1000, 0), "ack": ("A", 1001, 1), "fin": ("FA", 1001, 1), "rst": ("R", 1001, 1)}
SLACK_SECONDS = 2


def expiry(word):
    """`MINUTES:SECONDS` in seconds."""
    match = re.fullmatch(r"(\d{2,}):(\d\d)", word)
    return int(match[1]) * 60 + int(match[2]) if match else None


def rows(text):
    """A listing's rows, in an order that does not depend on when they expire."""
    lines = [line.split() for line in text.split("\n") if line and not line.startswith("IP Virtual Server")]
    return sorted(lines, key=lambda words: [word for word in words if expiry(word) is None])


def same_word(one, other):
    if one == other:
        return True
    times = expiry(one), expiry(other)
    return None not in times and abs(times[0] - times[1]) <= SLACK_SECONDS


def same_listing(one, other):
    one, other = rows(one), rows(other)
    return len(one) == len(other) and all(
        len(left) == len(right) and all(map(same_word, left, right)) for left, right in zip(one, other)
    )


def play_step(lab, step):
    """What differs, in words; empty if nothing does."""
    if "exec" in step:
        stdout, stderr, status = lab.shell(step["exec"])
        recorded = step["stdout"] + step["stderr"]
        if status == step["rc"] and same_listing(stdout + stderr, recorded):
            return ""
        return f"{step['exec']}\n{stdout}{stderr}instead of\n{recorded}"
    frame = bytes.fromhex(step["send"]["hex"])
    answers = lab.send(step["send"]["port"], frame)
    got = [comparable(port, answer, frame) for port, answer in answers]
    wanted = [comparable(answer["port"], bytes.fromhex(answer["hex"]), frame) for answer in step["recv"]]
    return "" if got == wanted else f"{step['send']['desc']}\n{got}\ninstead of\n{wanted}"


def play_event(lab, event):
    """The same for an event of a sequence: only the server that was chosen counts."""
    kind, client, port, vip, to_port, chosen = event
    flags, seq, ack = SEGMENTS[kind]
    answers = lab.send("c", bytes(from_client(client, vip) / tcp(port, to_port, flags, seq, ack)))
    names = {bytes.fromhex(mac.replace(":", "")): f"r{number}" for number, mac in SERVER_MAC.items()}
    got = next((names.get(frame[:6]) for side, frame in answers if side == "s"), None)
    return "" if got == chosen else f"{event}: {got}"


def replay(lab, recording):
    """How many steps were compared, and what differs."""
    lab.reset()
    lab.shell("\n".join(recording["setup"]))
    lab.receive(0.02, quiet=None)
    if "events" in recording:
        results = []
        for event in recording["events"]:
            if event[0] == "exec":
                lab.shell(event[1])
            else:
                results.append(play_event(lab, event))
    else:
        results = play_steps(lab, recording["steps"])
    return len(results), [result for result in results if result]


def play_steps(lab, steps):
    """Plays the steps of a case; sleeps are shorter by what the steps before them took."""
    results, due = [], time.monotonic()
    for step in steps:
        if "sleep" in step:
            due += step["sleep"]
            time.sleep(max(0, due - time.monotonic()))
        elif "async" in step:
            lab.receive(3, quiet=None)
        else:
            results.append(play_step(lab, step))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-v", "--verbose", action="store_true", help="print what differs")
    parser.add_argument("files", nargs="+")
    wanted = parser.parse_args()
    total = different = 0
    with Lab() as lab:
        for name in wanted.files:
            with open(name) as file:
                recording = json.load(file)
            compared, differences = replay(lab, recording)
            total, different = total + compared, different + len(differences)
            agree = f"{compared - len(differences)}/{compared}"
            print(f"{'differs' if differences else 'agrees '} {recording['name']}: {agree}", flush=True)
            if wanted.verbose:
                print(*differences, sep="\n", end="\n" if differences else "")
    print(f"{total - different} of {total} steps agree")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
