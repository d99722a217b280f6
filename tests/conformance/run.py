#!/usr/bin/python3
"""Gives the kernel's IPVS and the director the same random rules and packets, and says where they differ.

The kernel runs as a process and is recorded; the recording is then played at the director, in a process of its own, by
tests/conformance.rs, whose program has to be named. A difference counts if it is there each of three times, because the
machine may have been busy; such a sequence is made as short as it can be while it still differs, and saved.

Called by scripts/conformance.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "oracle/kernel"))

from lab import Lab, Recorder  # noqa: E402

from coverage import Coverage  # noqa: E402
from packets import client_frame, datagram_frames, error_frame, server_frame, server_of  # noqa: E402
from scenario import Scenario, server_address  # noqa: E402

# How often a difference has to be seen, and how many recordings may be made to shorten a sequence.
CONFIRMATIONS, SHORTENING_ATTEMPTS = 3, 60
PLAY_SECONDS = 60
NOT_BOOTED = 77


def record(lab, name, setup, steps):
    """The kernel's recording of these steps, and of each the numbers of its recorded steps."""
    it = Recorder(lab, name, "\n".join(setup), "a random sequence")
    it.case["numbers"] = []
    servers = {}
    for number, step in enumerate(steps):
        before = len(it.case["steps"])
        match step["do"]:
            case "command" | "list":
                it.run(step["line"])
                if step.get("settled"):
                    it.case["steps"][before]["settled"] = True
            case "sleep":
                it.sleep(step["seconds"])
            case "client":
                answers = it.exchange("c", client_frame(step, number + 1))
                servers[connection(step)] = server_of(step["flow"], answers) or servers.get(connection(step))
            case "server":
                it.exchange("s", server_frame(step, number + 1, servers.get(connection(step)) or any_server(step)))
            case "error":
                server = servers.get(connection(step)) or any_server(step)
                it.exchange(step["side"], error_frame(step, number + 1, server))
            case "datagram":
                for frame in datagram_frames(step, number + 1):
                    it.exchange("c", frame, datagram=number)
                # They are played together, and the time that they took after that.
                it.case["steps"][before:] = sorted(it.case["steps"][before:], key=lambda made: "sleep" in made)
        it.case["numbers"] += [number] * (len(it.case["steps"]) - before)
    return it.case


def connection(step):
    return tuple(step["flow"].values())


def any_server(step):
    """Of a connection that none has."""
    return 1, server_address(step["flow"]["family"], 1), step["flow"]["to_port"]


class Player:
    """The director: the program of tests/conformance.rs."""

    def __init__(self, program):
        self.program = program

    def differences(self, case):
        """Where the director differs from a recording: pairs of a recorded step's number and words."""
        with tempfile.TemporaryDirectory(prefix="conformance.") as folder:
            path = Path(folder) / "case.json"
            path.write_text(json.dumps(case))
            command = [self.program, "--ignored", "--exact", "play_recordings", "--nocapture"]
            done = subprocess.run(
                command,
                env={**os.environ, "UVS_CONFORMANCE": folder, "RUST_BACKTRACE": "0"},
                capture_output=True,
                text=True,
                timeout=PLAY_SECONDS,
            )
            result = path.with_suffix(".result")
            if not result.exists():
                raise RuntimeError(f"{self.program}: {done.stdout}{done.stderr}")
            result = json.loads(result.read_text())
            return result["differences"]


class Run:
    """Sequences, one after the other."""

    def __init__(self, lab, player, folder, shorten):
        self.lab, self.player, self.folder, self.shorten = lab, player, folder, shorten
        self.coverage = Coverage()
        self.different, self.unsteady = [], []

    def differs(self, name, setup, steps):
        """The recording, and where it differs; empty lists mean agreement."""
        case = record(self.lab, name, setup, steps)
        return case, self.player.differences(case)

    def sequence(self, seed, length):
        scenario = Scenario(seed, length)
        name = f"random-{seed}"
        case, differences = self.differs(name, scenario.setup, scenario.steps)
        self.coverage.add(scenario, case)
        if not differences:
            return
        for _ in range(CONFIRMATIONS - 1):
            again_case, again = self.differs(name, scenario.setup, scenario.steps)
            if not again:
                self.unsteady.append(seed)
                print(f"seed {seed}: differed once and not again: {differences[0][1]}", flush=True)
                return
            case, differences = again_case, again
        print(f"seed {seed}: {len(differences)} differences, the first: {differences[0][1]}", flush=True)
        if self.shorten:
            case, differences = self.shortened(name, scenario, case, differences)
        case["differences"] = [what for _, what in differences]
        self.save(case)
        self.different.append((seed, case))

    def shortened(self, name, scenario, case, differences):
        """Leaves out as many steps as it can: first all after the difference, then parts, halving their size."""
        setup = scenario.setup
        steps = scenario.steps[: case["numbers"][min(differences[0][0], len(case["numbers"]) - 1)] + 1]
        best = case, differences
        attempts = 0

        def still(candidate_setup, candidate):
            """Whether it is the last step that differs, where that is what was seen, and all before it is as it should."""
            nonlocal best, attempts
            attempts += 1
            case, found = self.differs(name, candidate_setup, candidate)
            same = found and case["setup_out"] == ["", "", 0] and case["numbers"][found[0][0]] == len(candidate) - 1
            if same:
                best = case, found
            return bool(same)

        if not still(setup, steps):
            return best
        size = max(1, len(steps) // 2)
        while size and attempts < SHORTENING_ATTEMPTS:
            at = 0
            while at < len(steps) - 1 and attempts < SHORTENING_ATTEMPTS:
                candidate = steps[:at] + steps[min(at + size, len(steps) - 1) :]
                if still(setup, candidate):
                    steps = candidate
                else:
                    at += size
            size //= 2
        for line in reversed(list(setup)):
            candidate = [other for other in setup if other != line]
            if attempts < SHORTENING_ATTEMPTS and still(candidate, steps):
                setup = candidate
        return best

    def save(self, case):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{case['name']}.json"
        path.write_text(json.dumps({**case, "numbers": None}, indent=1) + "\n")
        print(f"  {len(case['setup'])} commands and {len(case['steps'])} steps, saved as {path}:", flush=True)
        for line in case["setup"]:
            print(f"    {line}")
        for step in case["steps"]:
            print(f"    {describe(step)}")
        print(f"    => {case['differences'][0]}", flush=True)


def describe(step):
    """A recorded step in one line."""
    if "send" in step:
        answers = "; ".join(f"{answer['port']} {answer['desc']}" for answer in step["recv"]) or "nothing"
        return f"{step['send']['port']}: {step['send']['desc']} -> {answers}"
    return step.get("exec") or f"sleep {step['sleep']}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--player", required=True, help="the program of tests/conformance.rs")
    parser.add_argument("--seed", type=int, default=None, help="of the first sequence; the next have the next ones")
    parser.add_argument("--sequences", type=int, default=None, help="how many (default 30, or no limit with --minutes)")
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--steps", type=int, default=60, help="of each sequence")
    parser.add_argument("--save", type=Path, default=Path("target/conformance"), help="where what differs goes")
    parser.add_argument("--coverage", type=Path, default=None, help="write the coverage table there")
    parser.add_argument("--whole", action="store_true", help="do not shorten what differs")
    return parser.parse_args()


def main():
    wanted = arguments()
    seed = wanted.seed if wanted.seed is not None else int.from_bytes(os.urandom(4), "big")
    limit = wanted.sequences or (None if wanted.minutes else 30)
    end = time.monotonic() + 60 * wanted.minutes if wanted.minutes else None
    began = time.monotonic()
    # So that nothing is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    lab = Lab()
    try:
        lab.__enter__()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"!!! THE KERNEL DID NOT START, NOTHING WAS COMPARED: {error}", file=sys.stderr)
        return NOT_BOOTED
    done = 0
    try:
        print(f"kernel {lab.version}, seeds from {seed}", flush=True)
        run = Run(lab, Player(wanted.player), wanted.save, not wanted.whole)
        while (limit is None or done < limit) and (end is None or time.monotonic() < end):
            run.sequence(seed + done, wanted.steps)
            done += 1
    finally:
        lab.__exit__()
    print(
        f"{done} sequences (seeds {seed} to {seed + done - 1}), {run.coverage.frames} frames, "
        f"{run.coverage.listings} commands and listings in {time.monotonic() - began:.0f} s: "
        f"{len(run.different)} differ{' once only: ' + str(run.unsteady) if run.unsteady else ''}"
    )
    table = run.coverage.table(done)
    if wanted.coverage:
        wanted.coverage.write_text(table)
    for seed, case in run.different:
        print(f"seed {seed}: {case['differences'][0]}")
    return 1 if run.different else 0


if __name__ == "__main__":
    sys.exit(main())
