"""Many streams through the API for minutes: nothing lost, nothing mixed up, memory flat. Fails where one is not so.

The backend is benchmarks/paced.py: every piece of an answer names its question, so each answer is right or it is not.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks import serving

GROWTH = 1.05  # memory of the last tenth of the time over that of the second tenth: more is a leak


def resident(pid):
    """MiB of memory that a process holds now."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


async def ask(target, pid, how):
    """All streams ask without a pause: ({"right", "lost", "mixed"}: answers, [MiB of process `pid`, each second])."""
    end, numbers = time.monotonic() + how.seconds, itertools.count()
    counts, memory = Counter(right=0, lost=0, mixed=0), []

    async def worker(session):
        while time.monotonic() < end:
            number = next(numbers)
            try:
                text = (await serving.stream(session, *target, number, how.tokens))[2]
            except serving.LOST as error:
                counts["lost"] += 1
                print(f"lost: {error!r}", file=sys.stderr)
                continue
            said = text.partition("\n\n> ")[0].split()  # behind it stand the guard's notices
            counts["right" if said == [f"q{number}.{piece}" for piece in range(how.tokens)] else "mixed"] += 1

    async def watch():
        while time.monotonic() < end:
            memory.append(resident(pid))
            await asyncio.sleep(1)

    async with serving.client() as session:
        await asyncio.gather(watch(), *(worker(session) for _ in range(how.streams)))
    return counts, memory


def main(args=None):
    """Exit status: 0 where every answer was whole and its own, and memory did not grow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("seconds", 600), ("streams", 200), ("tokens", 32), ("rate", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    how = parser.parse_args(args)
    with serving.paced(how.rate) as (url, _):
        child, ours = serving.our(url, how.streams)
        try:
            counts, memory = asyncio.run(ask((ours, "none", ""), child.process.pid, how))
        finally:
            child.stop()
    tenth = max(1, len(memory) // 10)
    held = [statistics.median(memory[at : at + tenth]) for at in range(0, len(memory) - tenth + 1, tenth)]
    told = "{right:,} whole answers, each its own; {lost} lost, {mixed} mixed up".format(**counts)
    print(f"{how.streams} streams for {how.seconds} s: {told}")
    print("memory in each tenth of the time, MiB:", *(f"{mib:.1f}" for mib in held), f"; {max(memory):.1f} at most")
    early, late = held[min(1, len(held) - 1)], held[-1]
    fine = counts["right"] and not counts["lost"] and not counts["mixed"] and late <= GROWTH * early
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
