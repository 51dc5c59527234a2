"""A chunk of a random block stack of LTX-2's size, as many layers as fit: passes, commit, and all that the cache does.

Everything is the engine's own: a full keep-set, drift control, eviction to host memory at a cut and restoration at a
return. What scales with layers is stated for all of them too. It is meant for a GPU; on a CPU it runs to be tried, and
leaves nothing behind unless a folder is named.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from bench.common import Laps, Options, Report, label, options, parser, progress
from bench.random_model import fitting, random_model, transformer_of
from cache.books import CacheConfig
from cache.drift import DriftConfig
from cache.keep_set import Budgets, Role, RoleBudget
from cache.plan import Cut, ReturnTo
from cache.policies import SceneMemory
from cache.positions import PositionConfig
from cache.scenes import SceneConfig
from cache.spec import FORMATS, TYPES, AttentionType
from cache.tiers import Latents
from kernels.copies import Landing
from models.sampler import Schedule
from sizing.known import KNOWN
from streams.batch import Batch
from streams.engine import Engine
from streams.engine_config import EngineConfig
from streams.session import Session

# MaineCoon (arXiv 2606.17800): 47.5 frames a second on one H100, so that 0.64 s of media take 0.34 s.
UNIT_S, SLACK_S, GOAL, STALL = 0.64, 0.30, 0.10, 0.05
SCENES = ("cut: all that leaves", "return: all that comes back")
WITH_CHUNK = ("cut and the chunk after it", "return and the chunk after it")
# A lap of ours, and whether it takes so much longer as there are more layers.
PHASES = {
    "denoising, one step": True,
    "commit, the clean pass": True,
    "drift: statistics to the host": False,
    "drift: correction": False,
    "evict a chunk to host memory": True,
    "restore a chunk from host memory": True,
    "turn a chunk's keys": True,
    "chunk, everything": True,
    "cut: all that leaves": True,
    "return: all that comes back": True,
    "cut and the chunk after it": True,
    "return and the chunk after it": True,
}


@dataclass(frozen=True)
class Size:
    """What is measured. ``layers`` of ``whole`` are there; a chunk reads ``reads`` chunks, itself among them."""

    model: str
    layers: int
    whole: int
    video_tokens: int
    audio_tokens: int
    chunk_s: float
    sessions: int
    passes: int
    impl: str
    pages: str
    device: str
    reads: int = 0


@dataclass
class Stack:
    """An engine whose streams have a full keep-set."""

    engine: Engine
    sessions: list[Session]
    size: Size
    laps: Laps

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.engine.backbone.device

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Time the body, from a device that has nothing to do to one that has nothing to do."""
        finish(self.device)
        with self.laps.lap(name):
            yield
            finish(self.device)

    @contextmanager
    def begun(self) -> Iterator[Batch]:
        """A chunk in progress, which is given up afterwards."""
        for session in self.sessions:
            session.manager.begin()
            for t in TYPES:
                self.engine.pool.claim(session.lease, t, session.staged(t))
        yield Batch(self.engine.backbone, self.engine.pool, self.engine.ops, self.sessions)
        for session in self.sessions:
            for t, place in session.manager.abort().items():
                self.engine.pool.release(session.lease, t, place)


def finish(device: torch.device) -> None:
    """Wait until there is nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(given: argparse.Namespace) -> Stack:
    """Random weights, an engine, and streams with a full keep-set."""
    budget = RoleBudget(1, 1, 1, 1, 3) if given.quick else RoleBudget()
    policy, config = SceneMemory(Budgets.uniform(budget)), transformer_of(given)
    layers, device = fitting(config, given, policy), torch.device(given.device)
    model = random_model({**config, "num_layers": layers}, device, given)
    # What a random model makes drifts as it likes, and must not have anything dropped for it.
    drift = DriftConfig(warmup_chunks=2, raise_threshold=float("inf"))
    slots = model.geometry.position_slots(int(config["pos_embed_max_pos"]))
    made = EngineConfig(
        cache=CacheConfig(PositionConfig(slots), drift=drift, scenes=SceneConfig(anchor_every=3)),
        schedule=Schedule(),
        sessions=given.sessions,
        host_bytes=64 << 30,
        impl=given.impl,
        pages=given.pages,
        coded_queries=given.coded_queries,
    )
    engine, tokens = Engine(model, policy, made), model.geometry
    pages = given.pages + (", queries too" if given.coded_queries else "")
    size = Size(
        given.model, layers, int(config["num_layers"]), tokens.video_tokens, tokens.audio_tokens,
        float(tokens.seconds), given.sessions, len(made.schedule.sigmas), given.impl, pages, given.device,
    )  # fmt: skip
    return Stack(engine, [engine.open(f"prompt {i}", seed=i) for i in range(given.sessions)], size, Laps())


def passes(stack: Stack) -> None:
    """The model's part of a chunk, and drift control's."""
    engine, schedule = stack.engine, stack.engine.config.schedule
    with stack.begun() as batch:
        with stack.lap("denoising"):
            clean = batch.denoise(schedule)
        stack.laps.add("denoising, one step", stack.laps.ms["denoising"][-1] / len(schedule.sigmas))
        with stack.lap("drift: statistics to the host"):
            Landing([torch.cat(engine.ops.channel_statistics(x), -1) for x in clean]).wait()
        with stack.lap("drift: correction"):
            copies = [corrected(engine, x) for x in clean]
        assert all(bool(x.isfinite().all()) for x in copies), "the random model's latents are not finite"
        committed = [Latents(v, a, s.prompt.key) for v, a, s in zip(*copies, stack.sessions, strict=True)]
        with stack.lap("commit, the clean pass"):
            batch.commit(committed, schedule.context_sigma, engine.policy.wants_mass)


def corrected(engine: Engine, x: torch.Tensor) -> torch.Tensor:
    """AdaStat of all rows towards their own statistics, at half strength."""
    mean, std = engine.ops.channel_statistics(x)
    return engine.ops.correct(x, mean, std, torch.full((len(x),), 0.5, dtype=torch.float64, device=x.device)).x


def movements(stack: Stack) -> None:
    """One chunk of all types to host memory, back into other pages, and turned where it lies."""
    engine, session = stack.engine, stack.sessions[0]
    ledgers = session.manager.ledgers
    chunk, entry = next(iter(ledgers[TYPES[0]].entries.items()))
    with stack.begun():
        with stack.lap("evict a chunk to host memory"):
            packed = {
                t: engine.through.payload(session, t, chunk, ledgers[t].entries[chunk].place, entry.slot, Role.RECENT)
                for t in TYPES
            }
            landed = dict(zip(TYPES, Landing([packed[t].tensor for t in TYPES]).wait(), strict=True))
        pages = {t: session.page(t, session.staged(t)) for t in TYPES}
        with stack.lap("restore a chunk from host memory"):
            for t, page in pages.items():
                engine.paging.unpack(t, page, landed[t])
                engine.executor.rotate(t, page, entry.slot, entry.slot + 3)
        with stack.lap("turn a chunk's keys"):
            for t, page in pages.items():
                engine.executor.rotate(t, page, entry.slot + 3, entry.slot)


def chunks(stack: Stack, count: int, name: str = "chunk, everything") -> None:
    """Steps of the engine, from planning to the published latents."""
    for _ in range(count):
        with stack.lap(name):
            stack.engine.step(stack.sessions)


def scenes(stack: Stack, lap: int, full: int) -> None:
    """Cuts and returns of the first stream: until the last byte has moved, and what they delay the chunk after them."""
    engine, session = stack.engine, stack.sessions[0]
    home, prompt = session.manager.scenes.current_name, engine.prompt(f"elsewhere {lap}")
    for cut, back, steps in ((*SCENES, 0), (*WITH_CHUNK, 1)):
        with stack.lap(cut):
            engine.direct(session, Cut(f"elsewhere {lap} {steps}", prompt.key), prompt)
            for _ in range(steps):
                engine.step(stack.sessions)
        chunks(stack, full, "chunk elsewhere")
        with stack.lap(back):
            engine.direct(session, ReturnTo(home))
            for _ in range(steps):
                engine.step(stack.sessions)
        chunks(stack, full, "chunk at home")


def measure(given: argparse.Namespace, each: Callable[[int], Callable[[], None]]) -> Stack:
    """All laps; ``each`` makes a function that is called once for each of so many parts."""
    stack = build(given)
    full = max(stack.engine.places.values()) + 2
    repeats, returns = (3, 1) if given.quick else (given.repeats, 3)
    done = each(1 + 3 * (1 + repeats) + returns)
    chunks(stack, full, "filling")
    done()
    parts: list[Callable[[Stack], None]] = [passes, movements, lambda stack: chunks(stack, 1)]
    for lap in range(1 + repeats):
        for part in parts:
            part(stack)
            done()
        if not lap:  # it was to warm up
            stack.laps = Laps()
    kept = len(stack.sessions[0].manager.ledgers[AttentionType.VIDEO_SELF].places())
    stack.size = replace(stack.size, reads=1 + kept)
    for lap in range(returns):
        scenes(stack, lap, full)
        done()
    stack.engine.check_integrity()
    return stack


def fill(report: Report, stack: Stack, on_gpu: bool) -> None:
    """Tables, figures, and on a GPU the goals."""
    size, laps = stack.size, stack.laps
    slack_s = SLACK_S / UNIT_S * size.chunk_s
    deeper = size.whole / size.layers
    found = {name: laps.median(name) for name in PHASES}
    whole = {name: ms * (deeper if PHASES[name] else 1.0) for name, ms in found.items()}
    slowest = {name: laps.percentile(name, 100) for name in PHASES}
    rows = [(name, *(f"{x[name]:.3g}" for x in (found, slowest, whole)), len(laps.ms[name])) for name in PHASES]
    columns = ("", "ms, median", "slowest", f"ms, {size.whole} layers", "laps")
    report.table(f"{size.layers} of {size.whole} layers", columns, rows)
    model = laps.median("denoising") + found["commit, the clean pass"]
    cache = (found["chunk, everything"] - model) * deeper
    share, with_commit = (ms / 1e3 / slack_s for ms in (cache, cache + whole["commit, the clean pass"]))
    report.figures = {"ms": dict(laps.ms), "whole_ms": whole, "cache_ms": cache, "share": share, "slack_s": slack_s}
    report.table(
        f"Of the {slack_s:.2g} s that {size.chunk_s:g} s of media leave over, all layers",
        ("", "ms", "share"),
        [
            ("a chunk without its passes: draws, drift, correction, books, pages", f"{cache:.3g}", f"{share:.1%}"),
            ("with the clean pass", f"{cache + whole['commit, the clean pass']:.3g}", f"{with_commit:.1%}"),
        ],
    )
    if on_gpu:
        report.goal(f"cache work takes under {GOAL:.0%} of the slack", f"{share:.1%}", share < GOAL)
        longest = max(whole[name] for name in SCENES)
        report.goal("cut and return fit the slack", f"{longest:.3g} ms", longest / 1e3 < slack_s)
        stall = whole[WITH_CHUNK[0]] / whole["chunk, everything"] - 1
        report.goal("no stall visible in the chunk after a cut", f"{stall:+.1%}", stall < STALL)
        report.figures["peak_bytes"] = torch.cuda.max_memory_allocated(stack.device)
    else:
        report.notes.append("There is no GPU here: this shows that the benchmark runs, and says nothing of the goals.")
    report.notes.append(
        "A chunk without its passes is the difference of two medians, multiplied as if all of it grew with the layers. "
        "The clean pass is a pass of the model; MaineCoon's 0.34 s are taken to have it in them."
    )


def plot(report: Report, whole: int) -> Figure:
    """Phases at all layers, beside the part of the slack that is to be taken."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    found = report.figures["whole_ms"]
    axes.barh(list(found), list(found.values()))
    axes.axvline(
        report.figures["slack_s"] * 1e3 * GOAL, color="tab:red", linestyle="--", label=f"{GOAL:.0%} of the slack"
    )
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.legend()
    label(axes, f"A chunk of {whole} layers", "ms", "")
    return figure


def _arguments() -> argparse.Namespace:
    made, gpu = parser(__doc__ or ""), torch.cuda.is_available()
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if gpu else "cpu")
    made.add_argument("--model", choices=tuple(KNOWN), default="ltx-2.3", help="(default: ltx-2.3)")
    made.add_argument("--layers", type=int, help="(default: as many as fit)")
    made.add_argument("--frames", type=int, default=2, help="latent frames a chunk: 2 are 0.64 s, 3 are 1,152 tokens")
    made.add_argument("--sessions", type=int, default=1)
    made.add_argument("--impl", choices=("torch", "triton"), default="triton" if gpu else "torch")
    made.add_argument("--pages", choices=FORMATS, default="exact")
    made.add_argument("--coded-queries", action="store_true", help="with pages of codes: queries become codes too")
    made.add_argument("--repeats", type=int, default=20)
    return made.parse_args()


def main() -> None:
    """Measure, print, and leave JSON and plot."""
    given = _arguments()
    shared: Options = options(given)
    on_gpu = given.device == "cuda"
    if not on_gpu and given.results is None:
        shared = replace(shared, results=None)
    with progress() as bar, torch.inference_mode():
        task = bar.add_task("laps", total=None)

        def each(total: int) -> Callable[[], None]:
            bar.update(task, total=total)
            return lambda: bar.advance(task)

        stack = measure(given, each)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    report = Report("block_stack", "A block stack of LTX-2's size", shared, {"gpu": name, **asdict(stack.size)})
    fill(report, stack, on_gpu)
    report.finish(plot(report, stack.size.whole))


if __name__ == "__main__":
    main()
