"""What a codec of the restore store holds, costs and changes.

Bytes, worst channel and speed on keys and values of the shipped model and on random ones of LTX-2's size. Then what
matters: a stream returns to a scene whose memory went through a codec, and its next chunks are compared with those of
the stream whose memory came back exact. Three yardsticks stand beside the codecs: memory off by the last bit at random,
memory encoded again from its latents, and the same stream with other noise.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from bench.common import Laps, Options, Report, label, options, parser, progress
from bench.recoded import LastBit, Rebuilt, Recoded
from bench.takes import Role
from cache.codec import BufferCodec, Codec, Exact
from cache.codecs import NAMES, channel_errors, named, packing
from models.decoders import StreamDecoder
from settings import Studio, build_studio, load
from streams.making import Chunk
from streams.stream import Stream

CODECS = (*NAMES, "int8@0.05", "int4@0.35", "int4@0.15")
LTX_2 = (768, 4096)  # tokens and width of video self-attention
FLOOR = 1.5  # times what the last bit of the stored type changes


@dataclass(frozen=True)
class Size:
    """How far to go: ``layers`` of LTX-2 in the random tensor, chunks at home, away and looked at after the return."""

    layers: int
    rounds: int
    seeds: int
    home: int
    away: int
    look: int


QUICK = Size(layers=1, rounds=3, seeds=1, home=10, away=8, look=2)
FULL = Size(layers=4, rounds=9, seeds=5, home=24, away=24, look=8)


@dataclass(frozen=True)
class Held:
    """Of one codec on one kind of data. Errors in units of the channel, and of all keys or all values."""

    data: str
    codec: str
    ratio: float
    bits: float
    worst_channel: float
    whole: float
    rungs: dict[str, int]


@dataclass(frozen=True)
class Speed:
    """GB/s of nominal bytes into and out of warm buffers, beside copying them."""

    codec: str
    encode: float
    decode: float


@dataclass
class Effect:
    """Of one way back: relative difference of latents to the exact one, by chunk after the return, over all seeds."""

    name: str
    ratio: float | None = None
    video: list[list[float]] = field(default_factory=list)
    audio: list[list[float]] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)

    def median(self, kind: str, chunk: int | None = None) -> float:
        """Over seeds; of one chunk, or of all."""
        rows: list[list[float]] = getattr(self, kind)
        return statistics.median([x for row in rows for x in (row if chunk is None else [row[chunk]])])


def held(data: str, tensors: Sequence[torch.Tensor]) -> Iterator[Held]:
    """Every codec on tensors of one kind."""
    for name in CODECS:
        codec, worst, rungs = named(name), 0.0, dict[str, int]()
        nominal = bytes_held = elements = 0
        off = power = 0.0
        for tensor in tensors:
            encoded = codec.encode(tensor)
            found = codec.decode(encoded, tensor.dtype, tuple(tensor.shape))
            packed = packing(encoded, tensor.dtype, tensor.shape)
            nominal, bytes_held = nominal + packed.nominal_bytes, bytes_held + packed.held_bytes
            elements += packed.elements
            worst = max(worst, float(channel_errors(tensor, found).max()))
            off += float((found.float() - tensor.float()).square().sum())
            power += float(tensor.float().square().sum())
            for rung, count in packed.rungs.items():
                rungs[rung] = rungs.get(rung, 0) + count
        yield Held(data, name, nominal / bytes_held, 8 * bytes_held / elements, worst, (off / power) ** 0.5, rungs)


def speeds(tensor: torch.Tensor, rounds: int) -> Iterator[Speed]:
    """Every codec in turns on one tensor; the copy stands first."""
    buffers = {name: bytearray(named(name).bound(tensor.dtype, tensor.shape)) for name in CODECS}
    codecs: dict[str, BufferCodec] = {name: named(name) for name in CODECS}
    out, laps, gigabytes = torch.empty_like(tensor), Laps(), tensor.nbytes / 1e9
    out.copy_(tensor)
    for _ in range(rounds):
        with laps.lap("memcpy"):
            out.copy_(tensor)
        for name, codec in codecs.items():
            with laps.lap(f"{name} encode"):
                length = codec.encode_into(tensor, buffers[name])
            with laps.lap(f"{name} decode"):
                codec.decode_into(memoryview(buffers[name])[:length], out)
    copied = gigabytes / laps.median("memcpy") * 1e3
    yield Speed("memcpy", copied, copied)
    for name in CODECS:
        encode, decode = (gigabytes / laps.median(f"{name} {way}") * 1e3 for way in ("encode", "decode"))
        yield Speed(name, encode, decode)


def away_and_back(size: Size) -> tuple[dict[str, Effect], dict[str, list[torch.Tensor]]]:
    """Effects by way back, and the keys and values that were stored, by attention type."""
    studio, tier = _studio()
    effects = {name: Effect(name) for name in (*CODECS, "last bit", "rebuilt", "other noise")}
    taken: dict[str, list[torch.Tensor]] = {}
    with progress() as bar:
        task = bar.add_task("effect on the stream", total=size.seeds * len(effects))
        for seed in range(size.seeds):
            stream = _gone(studio, seed, size)
            for record in tier.records(stream.session.id).values():
                for t, payload in record.key_values.items():
                    taken.setdefault(t.value, []).append(payload.tensor)
            exact: list[Chunk] = []
            for name, effect in effects.items():
                chunks = _returned(stream, tier, name, size.look)
                exact = exact or chunks
                effect.ratio = tier.take_ratio()
                _compare(studio, effect, chunks, exact)
                bar.advance(task)
            stream.close()
    return effects, taken


def _studio() -> tuple[Studio, Recoded]:
    studio = build_studio(load(environ={"LONGTAKE_ENGINE__SESSIONS": "2"}))
    tier = Recoded(1 << 30)
    studio.engine.tier = studio.engine.staging.tier = tier
    return studio, tier


def _gone(studio: Studio, seed: int, size: Size) -> Stream:
    """A stream that has left its opening long enough that nothing of it is kept."""
    stream = Stream.open(studio.engine, Role.draw(seed).caption, seed)
    stream.take(size.home)
    stream.cut("elsewhere", Role.draw(seed, 1).caption, keep_subject=False)
    stream.take(size.away)
    return stream


def _returned(stream: Stream, tier: Recoded, name: str, look: int) -> list[Chunk]:
    others: dict[str, Codec | Rebuilt] = {"last bit": LastBit(), "rebuilt": Rebuilt(), "other noise": Exact()}
    tier.way = others[name] if name in others else named(name)
    child = stream.fork(seed=stream.session.seed + 1000 if name == "other noise" else None)
    child.return_to("opening")
    chunks = child.take(look)
    child.close()
    return chunks


def _compare(studio: Studio, effect: Effect, chunks: Sequence[Chunk], exact: Sequence[Chunk]) -> None:
    pairs = list(zip(chunks, exact, strict=True))
    effect.video.append([float((a.video - b.video).norm() / b.video.norm()) for a, b in pairs])
    effect.audio.append([float((a.audio - b.audio).norm() / b.audio.norm()) for a, b in pairs])
    decoders = StreamDecoder(studio.codecs), StreamDecoder(studio.codecs)
    for pair in pairs:
        ours, theirs = (d.push(c.video, c.audio).frames for d, c in zip(decoders, pair, strict=True))
        effect.pixels.append(float((ours.float() - theirs.float()).abs().mean()))


def report_on(report: Report, sizes: Sequence[Held], fast: Sequence[Speed], effects: dict[str, Effect]) -> None:
    """Tables and goals."""
    rows: list[list[object]] = []
    for h in sizes:
        rungs = ", ".join(f"{rung} {count}" for rung, count in sorted(h.rungs.items()))
        figures = [f"{h.ratio:.2f}", f"{h.bits:.2f}", f"{h.worst_channel:.4f}", f"{h.whole:.4f}", rungs]
        rows.append([f"{h.data}, {h.codec}", *figures])
    columns = ["data, codec", "times smaller", "bits held", "worst channel", "whole", "matrices"]
    report.table("Bytes held and errors (shares of 1)", columns, rows)
    rows = [[s.codec, f"{s.encode:.2f}", f"{s.decode:.2f}"] for s in fast]
    report.table("GB/s into and out of warm buffers, random bfloat16", ["codec", "encode", "decode"], rows)
    rows = []
    for name, e in effects.items():
        first, last = (f"{e.median('video', i):.4f}" for i in (0, -1))
        sound = f"{e.median('audio'):.4f}"
        smaller, pixels = f"{e.ratio:.2f}" if e.ratio else "–", f"{statistics.median(e.pixels):.2f}"
        rows.append([name, smaller, first, last, sound, pixels])
    columns = ["way back", "times smaller", "video, first", "video, last", "audio", "pixels, of 255"]
    report.table("Difference to the exact way back, medians over seeds", columns, rows)
    least, rebuilt = (effects[name].median("video") for name in ("last bit", "rebuilt"))
    for name in CODECS:
        if named(name).lossless:
            largest = max(x for row in effects[name].video for x in row)
            report.goal(f"{name}: not one bit of the stream changes", f"{largest:g}", largest == 0)
    for name in ("int8", "int8@0.05"):
        measured = effects[name].median("video") / least
        report.goal(f"{name}: within {FLOOR} of what the last bit changes", f"{measured:.2f} x", measured <= FLOOR)
    for name in CODECS:
        measured = effects[name].median("video") / rebuilt
        report.goal(f"{name}: changes less than rebuilding from latents", f"{measured:.2f} x", measured < 1)
    report.figures = {
        "held": [asdict(h) for h in sizes],
        "speeds": [asdict(s) for s in fast],
        "effects": {name: asdict(e) for name, e in effects.items()},
    }


def plotted(effects: dict[str, Effect]) -> Figure:
    """What is changed by how much is saved, and how it goes on after the return."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), constrained_layout=True)
    for name, effect in effects.items():
        change = effect.median("video")
        if effect.ratio is not None and name != "other noise":  # which is far above
            left.scatter(effect.ratio, change)
            left.annotate(name, (effect.ratio, change), fontsize=8)
        if change:
            chunks = range(len(effect.video[0]))
            right.plot(chunks, [effect.median("video", i) for i in chunks], marker=".", label=name)
    right.set_yscale("log")
    label(left, "Change of the stream by bytes saved", "times smaller", "relative difference of latents")
    label(right, "Change after the return", "chunk", "relative difference of latents")
    right.legend(fontsize=8)
    return figure


def run(shared: Options, size: Size) -> None:
    """Measure, print, and leave JSON and plot."""
    report = Report("codec", "Codecs of the restore store", shared, {"size": size, "random": LTX_2, "codecs": CODECS})
    effects, taken = away_and_back(size)
    random = torch.randn(size.layers, 2, *LTX_2, generator=torch.Generator().manual_seed(0)).bfloat16()
    sizes = [h for kind, tensors in taken.items() for h in held(f"toy {kind}", tensors)]
    sizes += held("random", [random])
    fast = list(speeds(random, size.rounds))
    report_on(report, sizes, fast, effects)
    report.notes += [
        "Worst channel: root mean square of a channel's difference over a chunk's tokens, by that of the channel.",
        "The streams are forks of one another and differ in nothing but what their memory went through.",
    ]
    report.finish(plotted(effects))


def main() -> None:
    """The command line."""
    made = parser(__doc__ or "")
    made.add_argument("--seeds", type=int, help="streams (default: 5; with --quick 1)")
    arguments = made.parse_args()
    shared = options(arguments)
    size = QUICK if shared.quick else FULL
    if arguments.seeds is not None:
        size = Size(**{**asdict(size), "seeds": arguments.seeds})
    run(shared, size)


if __name__ == "__main__":
    main()
