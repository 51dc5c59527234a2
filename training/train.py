"""Make the model that ships, from a seed: codecs, clips, transformer, segmenter. Every part resumes where it stopped.

python -m training.train --out models/toy --work runs

Two shared CPU cores took about three hours; ``--device cuda`` was not tried. Nothing is downloaded but the text
encoder, which is a Python package; all data is rendered from the closed form of the toy world.
"""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import AutoencoderKL, AutoencoderOobleck, LTX2VideoTransformer3DModel

from cache.spec import TYPES
from models.text_encoder import MINI_LM, SentenceEncoder
from training.backbone import SHIFT, ClipLoss, toy_transformer
from training.clips import Clips, make_frames, make_sounds
from training.codecs import FrameLoss, SoundLoss, frame_autoencoder, normed_weights, plain_weights, sound_codec
from training.loop import FitConfig, fit
from training.segmenter import train as train_segmenter
from training.world import CHUNK_FRAMES, FPS, SIDE

FRAMES = FitConfig(1200, learning_rate=1e-3, matrix_rate=0.02, average=0.99)
# Four times slower than for frames: at 0.02 it diverged after 300 steps.
SOUND = FitConfig(1800, learning_rate=5e-4, matrix_rate=0.005, average=0.99)
BACKBONE = FitConfig(1400, learning_rate=1e-3, matrix_rate=0.015, average=0.995)
REFINE = replace(BACKBONE, learning_rate=7e-4, matrix_rate=0.01, decay=0.6)
SHARD, SEGMENTER_STEPS = 100, 1800
KEEP_SET = {"scene_sink": 1, "scene_anchor": 2, "restored": 2, "recent": 5}
# What the checkpoint was trained for; laid over the defaults of the settings.
TRAINED_FOR = {
    "geometry": {"frames": CHUNK_FRAMES, "height": SIDE, "width": SIDE, "fps": float(FPS)},
    "budgets": {t.value: KEEP_SET for t in TYPES},
    "engine": {
        "first_schedule": {"sigmas": [1 - i / 16 for i in range(16)], "shift": SHIFT},
        "cache": {"scenes": {"last_chunks": 2, "recent_across_cut": 0}},
    },
    "segmenter": {"kind": "toy", "coverage": 0.05},
}


def frames(work: Path, seed: int, device: str) -> None:
    """Train the frame autoencoder."""
    torch.manual_seed(seed)
    model = frame_autoencoder().to(device, memory_format=torch.channels_last)
    fit("frames", model, FrameLoss(model, seed), FRAMES, work, device)
    model.save_pretrained(work / "frames")


def sound(work: Path, seed: int, device: str) -> None:
    """Train the codec of sound."""
    torch.manual_seed(seed)
    model = sound_codec()
    plain_weights(model)
    fit("sound", model.to(device), SoundLoss(model, seed), SOUND, work, device)
    normed_weights(model).save_pretrained(work / "sound")


def shard(job: tuple[Path, int, int, int]) -> None:
    """Encode one shard of clips with one thread, if it is not there yet."""
    work, first, last, seed = job
    torch.set_num_threads(1)
    parts: tuple[tuple[str, Any, Callable[..., None]], ...] = (
        ("frames", AutoencoderKL, make_frames),
        ("sounds", AutoencoderOobleck, make_sounds),
    )
    for kind, load, make in parts:
        path = work / "clips" / f"{kind}-{first:05d}.safetensors"
        if not path.exists():
            part = path.with_suffix(".part")
            make(load.from_pretrained(work / kind.replace("sounds", "sound")), range(first, last), seed, part)
            part.rename(path)


def encode_clips(work: Path, seed: int, scenes: int, processes: int) -> None:
    """Encode the clips, one process per core."""
    (work / "clips").mkdir(exist_ok=True)
    jobs = [(work, first, min(first + SHARD, scenes), seed) for first in range(0, scenes, SHARD)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(shard, jobs, chunksize=1)


def transformer(
    work: Path, seed: int, steps: int, batch: int, device: str, start: Path | None = None, name: str = "transformer"
) -> None:
    """Train the transformer; from ``start`` on, or from nothing."""
    torch.manual_seed(seed)
    model = toy_transformer() if start is None else LTX2VideoTransformer3DModel.from_pretrained(start).float()
    encode = SentenceEncoder.load(f"package:{MINI_LM}")
    resample_from = int(0.55 * steps) if start is None else 0
    loss = ClipLoss(model.to(device), Clips.load(work / "clips"), encode, seed, batch, resample_from, 0.15, device)
    for block in model.transformer_blocks:
        block.compile(dynamic=False)
    fit(name, model, loss, replace(BACKBONE if start is None else REFINE, steps=steps), work, device)
    model.save_pretrained(work / name)


def ship(work: Path, out: Path, transformer_from: str) -> None:
    """Write the weights in half precision, in the layout of released checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, tuple[Callable[..., Any], str]] = {
        "transformer": (LTX2VideoTransformer3DModel.from_pretrained, transformer_from),
        "vae": (AutoencoderKL.from_pretrained, "frames"),
        "audio_vae": (AutoencoderOobleck.from_pretrained, "sound"),
    }
    index: dict[str, Any] = {"_class_name": "LTX2Pipeline", "text_encoder": ["package", MINI_LM]}
    for name, (load, source) in parts.items():
        model = load(work / source)
        index[name] = ["diffusers", type(model).__name__]
        shutil.rmtree(out / name, ignore_errors=True)
        model.half().save_pretrained(out / name)
        config = out / name / "config.json"
        plain = json.loads(config.read_text())
        plain.pop("_name_or_path", None)  # where it lay while it was trained is nobody's business
        config.write_text(json.dumps(plain, indent=2) + "\n")
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "longtake.json").write_text(json.dumps(TRAINED_FOR, indent=2) + "\n")


def main(
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("models/toy"),
    work: Annotated[Path, typer.Option(help="Where checkpoints and clips go.")] = Path("runs"),
    only: Annotated[str, typer.Option(help="One part; default: all.")] = "",
    seed: int = 0,
    scenes: int = 1200,
    steps: Annotated[int, typer.Option(help="Steps of the transformer.")] = BACKBONE.steps,
    refine: Annotated[int, typer.Option(help="Steps of its second phase; 0: none.")] = 2200,
    batch: int = 4,
    threads: int = 2,
    device: str = "cpu",
) -> None:
    """Train the parts in their order; parts that are finished are not trained again."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    last = "refined" if refine else "transformer"
    stages: dict[str, Callable[[], None]] = {
        "frames": lambda: frames(work, seed, device),
        "sound": lambda: sound(work, seed, device),
        "clips": lambda: encode_clips(work, seed, scenes, threads),
        "transformer": lambda: transformer(work, seed, steps, batch, device),
        "refine": lambda: transformer(work, seed + 1, refine, batch, device, work / "transformer", "refined"),
        "ship": lambda: ship(work, out, last),
        "segmenter": lambda: typer.echo(train_segmenter(SEGMENTER_STEPS, out / "segmenter", work, seed)),
    }
    if only and only not in stages:
        raise typer.BadParameter(f"{only!r} is no part; expected one of {', '.join(stages)}")
    for name, stage in stages.items():
        if (only and name == only) or (not only and (name != "refine" or refine)):
            stage()


if __name__ == "__main__":
    typer.run(main)
