"""What damaged files and killed processes lead to: flips, cuts, swaps, torn writes, kills, full and read-only disks.

    python -m bench.damage [--quick] [--kills 300]

Zero wrong bytes, zero lost records, zero leaks, or the run says which. A full and a read-only disk need the right to
mount a small one.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from bench.common import Report, label, options, parser
from bench.damaged import Tally, cuts, flips, full_disk, kills, recycled, swaps, torn
from cache.storage.seals import Aes, Seal, Unsealed

KEY = bytes(range(32))
SEALS: dict[str, Seal] = {"plain": Unsealed(), "encrypted": Aes(KEY)}
ROW = {"bit flip": "bit flip", "truncated": "cut off", "another key's file": "swapped", "restart": "killed"}


def main() -> None:
    """Run the campaign."""
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--kills", type=int, default=300, help="processes to kill, of each kind (default: 300)")
    command.add_argument("--seed", type=int, default=0)
    arguments = command.parse_args()
    chosen = options(arguments)
    count = 6 if chosen.quick else arguments.kills
    report = Report(
        "damage",
        "Damage to the restore store",
        chosen,
        {"kills": count, "seed": arguments.seed, "record": "64 bytes of keys and values, one head of 4 KiB"},
    )
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="longtake-damage-") as folder:
        campaign(Path(folder), chosen.quick, count, arguments.seed, tallies, report)
    show(report, tallies)
    report.finish(plot(tallies))


def campaign(root: Path, quick: bool, count: int, seed: int, tallies: dict[str, Tally], report: Report) -> None:
    """Everything, into ``tallies`` by name."""
    bit, byte, head = (997, 61, 509) if quick else (1, 1, 1)
    for name, seal in SEALS.items():
        where = root / name
        tallies[f"bit flip, {name}"] = flips(where / "flips", seal, bit)
        tallies[f"cut off, {name}"] = cuts(where / "cuts", seal, byte)
        tallies[f"swapped, {name}"] = swaps(where / "swaps", seal)
        tallies[f"torn, {name}"] = torn(where / "torn", seal, head)
        tallies[f"killed, {name}"] = kills(where / "kills", count, seed, KEY if seal.overhead else b"")
    tallies["memory used again"] = recycled(root / "recycled", 200 if quick else 20_000)
    disk = root / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        report.notes.append("A full and a read-only disk were not tried: this user may not mount a small one.")
        return
    try:
        full, read_only = full_disk(disk, 2 if quick else 50, remounting(disk))
        tallies |= {"full disk": full, "read-only disk": read_only}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def remounting(disk: Path) -> Callable[[str], None]:
    """What turns a disk read-only (``ro``) and back (``rw``)."""

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

    return remount


def show(report: Report, tallies: dict[str, Tally]) -> None:
    """Counts, the row of the damage table, and the goals."""
    columns = ("damage", "done", "right", "missed", "wrong", "lost", "leaks", "why missed or removed")
    rows = [
        (name, t.done, t.right, t.missed, t.wrong, t.lost, t.leaks, ", ".join(f"{k} {v}" for k, v in t.reasons.items()))
        for name, t in tallies.items()
    ]
    report.table("What it led to", columns, rows)
    verdicts = [said(column, [t for n, t in tallies.items() if n.startswith(key)]) for column, key in ROW.items()]
    report.table("Damage, then ask for the data back", ("", *ROW), [("Longtake", *verdicts)])
    report.figures = {name: vars(tally) | {"reasons": dict(tally.reasons)} for name, tally in tallies.items()}
    for what in ("wrong", "lost", "leaks"):
        total = sum(getattr(tally, what) for tally in tallies.values())
        done = sum(tally.done for tally in tallies.values())
        report.goal(f"0 {what}", f"{total} in {done:,} times", not total)
    for name, tally in tallies.items():
        if name.startswith("killed"):
            report.goal(f"300 kills ({name})", str(tally.done), tally.done >= 300)


def said(column: str, tallies: list[Tally]) -> str:
    """A cell of the damage table."""
    if not all(tally.good for tally in tallies):
        return "wrong, lost or leaked"
    return "ok, no orphan" if column == "restart" else "miss, counted"


def plot(tallies: dict[str, Tally]) -> Figure:
    """How often each kind of damage was done, and how often it was survived or noticed."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    names = list(tallies)
    axes.barh(names, [max(1, tally.right) for tally in tallies.values()], label="came back as written")
    axes.barh(names, [max(1, tally.missed) for tally in tallies.values()], height=0.4, label="missed, counted")
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    label(axes, "What damage led to (wrong bytes: none, or the table says so)", "times", "")
    return figure


if __name__ == "__main__":
    main()
