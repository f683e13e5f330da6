"""Prints how every network of the zoo fares: `python tests/zoo/table.py [part of a name ...] [--spellings]`.

A line a network: in how many of its layers and methods the projections are right, the worst error of those that are
served, and what was refused or wrong.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator

import torch
from judged import Verdict, verdicts
from networks import NETWORKS, Network
from spellings import CASES

from zfkernels.testing.weights import pictures, randomised


def fared(name: str, found: list[Verdict]) -> str:
    served = [verdict.error for verdict in found if not verdict.refusal]
    wrong = [f"{v.layer} {v.method} {v.error:.1g}" for v in found if not v.refusal and not v.right]
    refused = dict.fromkeys(f"{v.layer}: {' '.join(v.refusal.split())[:160]}" for v in found if v.refusal)
    worst = f"{max(served):8.1e}" if served else "       -"
    lines = [f"{name:<46}{sum(v.right for v in found):>3} of {len(found)} right{worst}"]
    lines += [f"      WRONG {text}" for text in wrong] + [f"      refused {text}" for text in refused]
    return "\n".join(lines)


def of_network(network: Network) -> list[Verdict]:
    images = pictures(network.size)
    return verdicts(randomised(network.make(), images), images, network.layers)


def of_spelling(name: str) -> list[Verdict]:
    make, layers, forward = CASES[name]
    images = pictures(24)
    settings = {"forward": forward} if forward else {}
    return verdicts(randomised(make(), images, forward=forward), images, layers, **settings)


def jobs(wanted: list[str], spellings: bool) -> Iterator[tuple[str, object, object]]:
    for network in NETWORKS:
        if not wanted or any(part in network.title for part in wanted):
            yield network.title, of_network, network
    for name in CASES if spellings else ():
        if not wanted or any(part in name for part in wanted):
            yield name, of_spelling, name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only those whose name holds one of these")
    parser.add_argument("--spellings", action="store_true", help="the small networks of spellings.py too")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    right, served, count, start = 0, 0, 0, time.monotonic()
    for title, judge, subject in jobs(args.names, args.spellings):
        missing = subject.missing() if isinstance(subject, Network) else ""
        if missing:
            print(f"{title:<46} not installed: {missing}", flush=True)
            continue
        torch.manual_seed(0)
        found = judge(subject)
        print(fared(title, found), flush=True)
        count += 1
        right += all(verdict.right for verdict in found)
        served += not any(verdict.refusal for verdict in found)
    print(f"{count} networks, {served} served, {right} right, {time.monotonic() - start:.0f} s")
    return 0 if right == count else 1


if __name__ == "__main__":
    sys.exit(main())
