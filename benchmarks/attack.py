"""The attacks that the service is meant to hold under, each at full size against a service of its own within limits.

`python -m benchmarks.attack` prints a table: what the front's memory grew by, how probes and another key's plans fared,
and what the attacker was answered. `--only 2 6` takes some rows, `--seconds` how long each goes on, `--out FOLDER`
keeps attack.json and attack.md. Each process of the service has 2 GiB of address space and 1024 file descriptors. The
attacker and the meter run on the same machine, whose cores they share with the service.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.attacks import front, shares
from benchmarks.attacks.meter import metering
from benchmarks.attacks.target import Attack, Target, scratch, serving
from benchmarks.source import commit
from cli.demo.machine import describe_machine

ATTACKS: tuple[Attack, ...] = (*front.ATTACKS, *shares.ATTACKS)
LONGEST_S = 240.0  # until an attack is ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="rows by number")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each attack goes on")
    parser.add_argument("--out", type=Path, help="folder to write attack.json and attack.md to")
    arguments = parser.parse_args()
    chosen = [attack for attack in ATTACKS if not arguments.only or attack.row in arguments.only]
    rows = []
    for attack in chosen:
        rows.append(measured(attack, arguments.seconds))
        print(_line(rows[-1]), flush=True)
    figures = {"rows": rows, "seconds": arguments.seconds, "machine": describe_machine(), "commit": commit()}
    table = markdown(figures)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "attack.json").write_text(json.dumps(figures, indent=2) + "\n")
        (arguments.out / "attack.md").write_text(table)
    print(table)


def measured(attack: Attack, seconds: float) -> dict[str, Any]:
    """One attack on a fresh service, from a process of its own, and what others saw of it."""
    processes = multiprocessing.get_context("spawn")
    with scratch() as folder, serving(attack, folder) as target:
        here, there = processes.Pipe(duplex=False)
        attacker = processes.Process(target=_attack, args=(attack.row, attack.name, target, seconds, there))
        with metering(target) as meter:
            attacker.start()
            there.close()
            answered = dict(here.recv()) if here.poll(LONGEST_S) else {"not done": 1}
            attacker.kill()
            attacker.join()
        return {"row": attack.row, "attack": attack.name, **meter.report(), "attacker": answered}


def _attack(row: str, name: str, target: Target, seconds: float, answer: Connection) -> None:
    (attack,) = (each for each in ATTACKS if (each.row, each.name) == (row, name))
    try:
        found = attack.run(target, seconds)
    except Exception as error:
        found = Counter({f"the attack failed: {type(error).__name__}: {error}"[:200]: 1})
    answer.send(found)


HEAD = (
    "| row | attack | front MiB | livez p99 ms | failed | health | others' plans | p99 ms | late | log KiB | answers |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    lines = [
        "# The service under attack",
        "",
        f"`python -m benchmarks.attack`, {figures['seconds']:g} s a row. {machine}; commit {figures['commit']}.",
        "",
        *HEAD,
        *(_line(row) for row in figures["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    livez, checks, plans = row["livez"], row["health_checks"], row["plans"]
    answered = ", ".join(f"{what}: {count}" for what, count in sorted(row["attacker"].items()))
    share = f"{plans['answered']} of {plans['asked']}{' ' + ', '.join(plans['refused']) if plans['refused'] else ''}"
    cells = (
        row["row"], row["attack"], f"+{row['front_peak_delta_mib']}", livez.get("p99_ms", "none"),
        f"{livez['failed']} of {livez['asked']}", f"{checks['asked'] - checks['failed']} of {checks['asked']}",
        share, plans.get("p99_ms", "none"), plans["late"], row["log_kib"], answered,
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    main()
