"""The toy segmenter's training and evaluation: described subjects, softened frames, and descriptions that are wrong.

python -m training.segmenter --steps 1800 --out models/toy/segmenter
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, max_pool2d

from models.prompt import Prompt
from models.segmenter import Segmenter
from models.text_encoder import SentenceEncoder
from models.toy_segmenter import SegmenterConfig, SegmenterNet, ToySegmenter, mean_of_tokens
from training.loop import FitConfig, fit
from training.world import COLOURS, ROOMS, SHAPES, TEMPLATES, Scene

PHRASES = ("{colour} {shape}", "a {colour} {shape}", "the {colour} {shape}", "a {shape} that is {colour}")
CAPTIONS, EMPTY, WRONG_MASK = 0.4, 0.125, 0.25
SENTENCES = 6
MOST_BLUR, MOST_NOISE, MOST_TINT, BLUR_REACH = 2.0, 0.06, 0.08, 4
NEGATIVE_MASKS, EDGES = 0.2, 2.0
TRAINED_SCENES = 4096


def describe(rng: random.Random, shape: str, colour: str, room: str) -> str:
    """One of the ways to name a subject, alone or in a whole caption."""
    template = rng.choice(TEMPLATES if rng.random() < CAPTIONS else PHRASES)
    return template.format(colour=colour, shape=rng.choice(SHAPES[shape]), room=room)


def other(rng: random.Random, known: Sequence[str], word: str) -> str:
    """A word of ``known`` other than ``word``."""
    return rng.choice([w for w in known if w != word])


def soften(frames: torch.Tensor, blur: torch.Tensor, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Frames [batch, 3, side, side] in [0, 1] as a codec and a generator leave them.

    ``blur`` [batch]: spread of a Gaussian in pixels, 0 for none; ``noise``: largest spread of white noise. Each frame
    is also tinted and brightened at random.
    """
    batch = len(frames)
    reach = torch.arange(-BLUR_REACH, BLUR_REACH + 1.0)
    kernel = torch.exp(-0.5 * (reach / blur.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)[:, None]
    flat = torch.nn.functional.pad(frames.flatten(0, 1)[None], (BLUR_REACH,) * 4, mode="replicate")
    flat = conv2d(conv2d(flat, kernel[:, :, None, :], groups=3 * batch), kernel[:, :, :, None], groups=3 * batch)
    gain, tint = (1 + MOST_TINT * (2 * torch.rand(batch, n, 1, 1, generator=generator) - 1) for n in (1, 3))
    spread = noise * torch.rand(batch, 1, 1, 1, generator=generator)
    grain = spread * torch.randn(frames.shape, generator=generator)
    softened: torch.Tensor = flat[0].unflatten(0, (batch, 3)) * gain * tint + grain
    return softened.clamp(0, 1)


@dataclass(frozen=True)
class Examples:
    """Softened frames in [−1, 1] with sentences about each.

    Args:
        frames: [batch, 3, side, side]; texts: by frame and sentence; present: [batch, sentences], 1 where it is true.
        masks: [batch, side, side] for the first sentence of each frame, zeros if it is not true.
    """

    frames: torch.Tensor
    masks: torch.Tensor
    texts: list[list[str]]
    present: torch.Tensor


@lru_cache(maxsize=TRAINED_SCENES)
def _scene(seed: int, number: int) -> Scene:
    return Scene.draw(random.Random(f"{seed}/segmenter/{number}"))


class SegmenterLoss:
    """Where the described subject is, and whether it is there at all; several sentences about every frame.

    A third of the sentences is right, a third names another colour, a third another shape; some rooms are empty. A mask
    counts less where its sentence is wrong: the verdict has to tell that, and a subject whose shape is blurred is still
    to be found.
    """

    def __init__(self, net: SegmenterNet, encode: Callable[[str], Prompt], seed: int, batch: int = 8) -> None:
        self.net, self.seed, self.batch = net, seed, batch
        self._embed = lru_cache(maxsize=None)(lambda text: mean_of_tokens(encode(text)))

    def sample(self, step: int) -> Examples:
        """The examples of a step, all from its number."""
        rng = random.Random(f"{self.seed}/segmenter/{step}")
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        frames, masks, texts, present = [], [], [], []
        for _ in range(self.batch):
            scene = _scene(self.seed, rng.randrange(TRAINED_SCENES))
            times = torch.tensor([rng.uniform(0, 600)])
            empty = rng.random() < EMPTY
            said = self._sentences(scene, rng)
            texts.append([text for text, _ in said])
            present.append([true and not empty for _, true in said])
            frames.append(scene.background() if empty else scene.frames(times)[0])
            masks.append(scene.coverage(times)[0] * present[-1][0])
        blur = MOST_BLUR * torch.rand(self.batch, generator=generator)
        softened = soften(torch.stack(frames), blur, MOST_NOISE, generator)
        return Examples(softened * 2 - 1, torch.stack(masks), texts, torch.tensor(present, dtype=torch.float32))

    @staticmethod
    def _sentences(scene: Scene, rng: random.Random) -> list[tuple[str, bool]]:
        """Sentences about a scene, and whether each is true of its subject; the first one most often is."""
        said = []
        for i in range(SENTENCES):
            shape, colour = scene.shape, scene.colour
            room = scene.room if rng.random() < 0.5 else rng.choice(list(ROOMS))
            if i % 3 == 1:
                colour = other(rng, list(COLOURS), colour)
            elif i % 3 == 2:
                shape = other(rng, list(SHAPES), shape)
            said.append((describe(rng, shape, colour, room), i % 3 == 0))
        if rng.random() < WRONG_MASK:
            said.reverse()
        return said

    def __call__(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        examples = self.sample(step)
        texts = torch.stack([torch.stack([self._embed(text) for text in said]) for said in examples.texts])
        masks, presence = (x.float() for x in self.net(examples.frames, texts))
        truth, present = examples.masks, examples.present
        shown = present[:, 0]
        near = max_pool2d(truth[:, None], 5, 1, 2)[:, 0]
        pixels = binary_cross_entropy_with_logits(masks, truth, reduction="none") * (1 + EDGES * near)
        made = masks.sigmoid()
        overlap = 1 - (2 * (made * truth).sum((1, 2)) + 1) / ((made + truth).sum((1, 2)) + 1)
        weight = torch.where(shown > 0, 1.0, NEGATIVE_MASKS)
        mask_loss = (weight * 10 * pixels.mean((1, 2)) + shown * overlap).sum() / self.batch
        verdict = binary_cross_entropy_with_logits(presence, present, pos_weight=torch.tensor(2.0))
        with torch.no_grad():
            right = ((presence > 0) == (present > 0)).float().mean()
            figures = {"iou": float(_iou(made, truth)[shown > 0].mean()), "match": float(right)}
        return mask_loss + 2 * verdict, figures


def _iou(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Intersection over union of masks [batch, height, width], both cut at one half: [batch]."""
    a, b = masks > 0.5, truth > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)


@dataclass(frozen=True)
class Evaluation:
    """How well a segmenter does on scenes that it was not trained on; shares in [0, 1].

    Args:
        iou: mean over frames with the right description.
        found: right descriptions scored above one half; refused_colour, refused_shape, refused_empty: wrong ones (wrong
            colour, wrong shape, a room without its subject) scored below.
        colour, shape: the right one of all colours (shapes) has the best score.
        match: mean of found and the mean of the three refusals.
    """

    iou: float
    found: float
    refused_colour: float
    refused_shape: float
    refused_empty: float
    colour: float
    shape: float

    @property
    def match(self) -> float:
        """Balanced accuracy of the score at one half."""
        return (self.found + (self.refused_colour + self.refused_shape + self.refused_empty) / 3) / 2


def evaluate(segmenter: Segmenter, seed: int, scenes: int = 64, blur: float = 0.0, noise: float = 0.0) -> Evaluation:
    """Ask ``segmenter`` for every colour and every shape in one frame each of ``scenes`` scenes, "a COLOUR SHAPE".

    ``blur`` (pixels) and ``noise`` soften the frames; 0 leaves them as the world draws them.
    """
    rows: list[list[float]] = []
    for number in range(scenes):
        rng = random.Random(f"{seed}/evaluate segmenter/{number}")
        generator = torch.Generator().manual_seed(number)
        scene, times = Scene.draw(rng), torch.tensor([rng.uniform(0, 600)])
        pictures = torch.stack([scene.frames(times)[0], scene.background()])
        if blur or noise:
            pictures = soften(pictures, torch.full((2,), blur), noise, generator)
        frames = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        right = segmenter.score(frames, f"a {scene.colour} {scene.shape}")
        mine, empty = right.scores.tolist()
        colours = [
            float(segmenter.score(frames[:1], f"a {c} {scene.shape}").scores[0]) for c in COLOURS if c != scene.colour
        ]
        shapes = [
            float(segmenter.score(frames[:1], f"a {scene.colour} {s}").scores[0]) for s in SHAPES if s != scene.shape
        ]
        refused = [sum(score < 0.5 for score in scores) / len(scores) for scores in (colours, shapes, [empty])]
        iou = float(_iou(right.masks[:1], scene.coverage(times))[0])
        rows.append([iou, mine > 0.5, *refused, mine > max(colours), mine > max(shapes)])
    return Evaluation(*torch.tensor(rows, dtype=torch.float64).mean(0).tolist())


def train(steps: int, out: Path, work: Path, seed: int = 0, batch: int = 8) -> Evaluation:
    """Train a new segmenter, write it into ``out``, evaluate what was written; checkpoints and log go to ``work``."""
    torch.manual_seed(seed)
    net = SegmenterNet(SegmenterConfig())
    encode = SentenceEncoder.load(net.config.text_encoder)
    config = FitConfig(steps=steps, matrix_rate=0.02, learning_rate=1e-3, average=0.99)
    fit("segmenter", net, SegmenterLoss(net, encode, seed, batch), config, work)
    net.save_pretrained(out)
    return evaluate(ToySegmenter.load(out, encode), seed + 1)


def main(
    out: Annotated[Path, typer.Option(help="folder for config.json and model.safetensors")],
    steps: Annotated[int, typer.Option(min=1)] = 1800,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    work: Annotated[Path, typer.Option(help="folder for checkpoints and the log")] = Path("build/segmenter"),
    seed: int = 0,
) -> None:
    """Train the toy segmenter and print how well it does."""
    evaluation = train(steps, out, work, seed, batch)
    typer.echo(f"{evaluation} match={evaluation.match:.3f}")


if __name__ == "__main__":
    typer.run(main)
