"""What do codes in the pool cost in the picture? The example take with pages of each format, read back.

Each take is the three scenes of ``examples/three-scenes.yaml`` and the return to the first, as ``longtake generate``
makes it; room, subject, sound and synchrony are read back by the truth of the toy world (``bench.looking``). The take
of another format is another take: what counts is how well it shows what its script says, not how near it is.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from time import process_time

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import REPOSITORY, Report, kept, label, options, parser, progress
from bench.looking import Window, look
from cache.spec import AttentionType, PageFormat
from models.decoders import StreamDecoder
from settings import build_studio, load, read_shots
from streams.director import Script
from streams.making import Chunk
from streams.production import Production

SCRIPT = REPOSITORY / "examples" / "three-scenes.yaml"
SKIPPED = 3  # chunks at the beginning of a shot that are not looked at: 2 s
SOUND: dict[AttentionType, PageFormat] = {AttentionType.AUDIO_SELF: "exact", AttentionType.AUDIO_TO_VIDEO: "exact"}
VARIANTS: dict[str, tuple[PageFormat, dict[AttentionType, PageFormat], bool]] = {
    "exact": ("exact", {}, False),
    "int8": ("int8", {}, False),
    "fp8": ("fp8", {}, False),
    "int8, sound exact": ("int8", SOUND, False),
    "int8, queries too": ("int8", {}, True),
    "fp8, queries too": ("fp8", {}, True),
}
Figures = dict[str, float]


def windows(script: Script, made: Production) -> list[Window]:
    """The take, shot by shot; each is decoded by itself, so that its picture and its sound begin together."""
    chunks: list[list[Chunk]] = [[] for _ in script.scenes]
    ends = np.cumsum([float(shot.seconds) for shot in script.scenes])
    with progress() as bar:
        task = bar.add_task("take", total=made.total)
        for shown in made:
            if shown.chunk is not None:
                chunks[int(np.searchsorted(ends, float(shown.chunk.start), "right"))].append(shown.chunk)
                bar.advance(task)
    names = {script.name(i): shot.subject for i, shot in enumerate(script.scenes) if not shot.return_to}
    found = []
    for i, shot in enumerate(script.scenes):
        colour, shape = names[shot.return_to or script.name(i)].split()
        decoder = StreamDecoder(made.decoder.codecs)
        media = [decoder.push(c.video, c.audio) for c in chunks[i][SKIPPED:]] + [decoder.flush()]
        frames, samples = (torch.cat(parts) for parts in zip(*media, strict=True))
        found.append(look(frames, samples[:, 0], shape, colour))
    return found


def take(variant: str, seed: int, quick: bool) -> Figures:
    """Figures of one take."""
    pages, of, coded = VARIANTS[variant]
    shipped = load(environ={})
    engine = replace(shipped.engine, pages=pages, pages_of=of, coded_queries=coded)
    studio = build_studio(replace(shipped, engine=engine))
    script = read_shots(SCRIPT)
    if quick:
        script = Script(tuple(replace(shot, duration=5) for shot in script.scenes))
    made = Production(studio.engine, studio.codecs, script, seed, studio.keeper())
    began = process_time()
    seen = windows(script, made)
    return {
        "room": float(np.abs(seen[-1].room - seen[0].room).mean()),
        "found": float(np.mean([w.found for w in seen])),
        "colour": float(np.mean([w.colour for w in seen])),
        "shape": float(np.mean([w.shape for w in seen])),
        "pitch": float(np.nanmean([w.pitch_cents for w in seen])),
        "synchrony": float(np.nanmean([w.synchrony for w in seen])),
        "chunk_ms": 1e3 * (process_time() - began) / made.total,
        "chunk_bytes": float(sum(spec.bytes_per_chunk for spec in studio.engine.specs.values())),
    }


def main() -> None:
    """Run, print, and leave JSON and plot."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--seeds", type=int, default=3, help="takes of each format (default: 3)")
    given = arguments.parse_args()
    shared = options(given)
    seeds = range(1 if shared.quick else given.seeds)
    what = [SCRIPT.read_text(encoding="utf-8"), asdict(load(environ={})), shared.quick]
    runs = {
        name: [kept(shared.work, f"{name} {seed}", what, partial(take, name, seed, shared.quick)) for seed in seeds]
        for name in VARIANTS
    }
    report = Report("pages", "What do codes in the pool cost in the picture?", shared, {"seeds": list(seeds)})
    report.figures["takes"] = runs
    means = {name: {key: float(np.mean([x[key] for x in found])) for key in found[0]} for name, found in runs.items()}
    columns = ["pages", "kB a chunk", "room on return", "found", "colour", "shape", "pitch, cents", "synchrony", "ms"]
    rows = [
        [
            name, f"{x['chunk_bytes'] / 1e3:.0f}", f"{x['room']:.4f}", f"{x['found']:.3f}", f"{x['colour']:.3f}",
            f"{x['shape']:.3f}", f"{x['pitch']:.1f}", f"{x['synchrony']:.2f}", f"{x['chunk_ms']:.0f}",
        ]
        for name, x in means.items()
    ]  # fmt: skip
    report.table("Mean over shots and seeds; ms of CPU time a chunk, decoding included", columns, rows)
    report.notes.append("Speed on a GPU is not measured here; on a CPU codes cost what it takes to read them back.")
    report.finish(plot(runs))


def plot(runs: dict[str, Sequence[Figures]] | dict[str, list[Figures]]) -> Figure:
    """Shares by format, a point a seed."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    shown = ("found", "colour", "shape", "synchrony")
    for i, (name, found) in enumerate(runs.items()):
        for j, key in enumerate(shown):
            values = [x[key] for x in found]
            axes.scatter(
                [j + 0.12 * (i - (len(runs) - 1) / 2)] * len(values),
                values,
                color=f"C{i}",
                label=name if not j else None,
            )
    axes.set_xticks(range(len(shown)), shown)
    axes.set_ylim(0, 1.05)
    axes.legend()
    label(axes, "What a take shows of its script", "", "share")
    return figure


if __name__ == "__main__":
    main()
