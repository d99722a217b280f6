"""How often each feature was exercised."""

from collections import Counter


def outcomes(case):
    """What the kernel did with each frame, in a word or two."""
    for step in case["steps"]:
        if "send" not in step:
            continue
        answers = step["recv"]
        if not answers:
            yield "outcome: nothing sent"
        for answer in answers:
            words = answer["desc"]
            if answer["port"] != step["send"]["port"]:
                yield "outcome: forwarded"
            elif "icmp" in words:
                yield "outcome: ICMP error answered"
            else:
                yield "outcome: answered by the host"


class Coverage:
    """Counts, over all sequences, of steps and of sequences with a feature."""

    def __init__(self):
        self.steps, self.sequences = Counter(), Counter()
        self.frames = self.listings = 0

    def add(self, scenario, case):
        features = Counter(feature for step in scenario.steps for feature in step["features"])
        features.update(outcomes(case))
        self.steps.update(features)
        self.sequences.update(features.keys())
        self.frames += sum("send" in step for step in case["steps"])
        self.listings += sum("exec" in step for step in case["steps"])

    def table(self, sequences):
        lines = [
            "# What the random sequences exercised",
            "",
            f"{sequences} sequences, {self.frames} frames, {self.listings} commands and listings; written by",
            "`scripts/conformance --coverage tests/conformance/COVERAGE.md`.",
            "",
            "| feature | steps | sequences |",
            "|---|---:|---:|",
        ]
        lines += [f"| {name} | {self.steps[name]} | {self.sequences[name]} |" for name in sorted(self.steps)]
        return "\n".join(lines) + "\n"
