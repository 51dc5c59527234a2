"""Training clips: memory chunks of a scene, then a run of chunks that may cut to another scene or return to one.

A clip has the layout that the cache has at inference: subject anchor, scene sink, scene anchors, restored chunks, then
recent chunks, at position slots in that order and at distances within the trained range. The chunks of the run are the
targets; each may look at what the cache would show it.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch.nn.functional import pixel_unshuffle

from models.latents import pack_audio, pack_video
from training.codecs import FRAME_FOLD, SOUND_HOP, fold, frames_at
from training.world import CHUNK_FRAMES, CHUNK_SAMPLES, SIDE, Scene, chunk_times

START_CHUNKS, LATER_CHUNKS = 7, 9
MEMORY, RUN, SLOTS = 5, 8, 31
RECENT, ACROSS_CUT = (3, 5, 7), (0, 0, 2)  # drawn per clip, so that no one budget of recent chunks is baked in
CLEAN = MEMORY + RUN - 1
PATCH, PATCH_T, AUDIO_PATCH_T, MARGIN = 2, 2, 4, 16
PAST_SAMPLES, TOKEN_SIDE = MARGIN * SOUND_HOP, SIDE // 4


def scene_of(seed: int, number: int) -> Scene:
    """Training scene ``number``."""
    return Scene.draw(random.Random(f"{seed}/clips/{number}"))


def runs_of(seed: int, number: int) -> list[tuple[int, int]]:
    """First chunk and length of the two runs that are encoded of a scene: its beginning, and somewhere later."""
    later = random.Random(f"{seed}/later/{number}").randrange(START_CHUNKS, 400)
    return [(0, START_CHUNKS), (later, LATER_CHUNKS)]


def encode_frames(model: Any, scene: Scene, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Video tokens [count, tokens, channels] of a run, and the subject's share of each token [count, tokens]."""
    frames = torch.cat([frames_at(scene, chunk) for chunk in range(first, first + count)])
    pixels = pixel_unshuffle(frames, FRAME_FOLD).contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        latents = model.encode(pixels).latent_dist.mean.float()
    video = torch.stack([pack_video(x.transpose(0, 1), PATCH, PATCH_T) for x in latents.split(CHUNK_FRAMES)])
    times = torch.cat([chunk_times(chunk) for chunk in range(first, first + count)])
    share = torch.nn.functional.avg_pool2d(scene.coverage(times.float())[:, None], TOKEN_SIDE)[:, 0].flatten(1)
    return video, share.unflatten(0, (-1, PATCH_T)).amax(1).reshape(count, -1)


def encode_sound(model: Any, scene: Scene, first: int, count: int) -> torch.Tensor:
    """Audio tokens [count, tokens, channels] of a run."""
    sound = scene.sound(first * CHUNK_SAMPLES - PAST_SAMPLES, count * CHUNK_SAMPLES + 2 * PAST_SAMPLES)
    latents = model.encode(fold(sound[None])).latent_dist.mean[0, :, MARGIN:-MARGIN]
    return torch.stack([pack_audio(x, AUDIO_PATCH_T) for x in latents.split(CHUNK_SAMPLES // SOUND_HOP, dim=1)])


@torch.inference_mode()
def make_frames(model: Any, scenes: range, seed: int, path: Path) -> None:
    """Encode the frames of ``scenes`` into the file ``path``."""
    made = []
    for number in track(scenes, description="clips: frames"):
        scene = scene_of(seed, number)
        runs = [encode_frames(model, scene, *run) for run in runs_of(seed, number)]
        made.append([torch.cat(parts).half() for parts in zip(*runs, strict=True)])
    video, subject = (torch.stack(parts) for parts in zip(*made, strict=True))
    save_file({"video": video, "subject": subject, **_origin(scenes, seed)}, str(path))


@torch.inference_mode()
def make_sounds(model: Any, scenes: range, seed: int, path: Path) -> None:
    """Encode the sounds of ``scenes`` into the file ``path``."""
    made = []
    for number in track(scenes, description="clips: sounds"):
        scene = scene_of(seed, number)
        made.append(torch.cat([encode_sound(model, scene, *run) for run in runs_of(seed, number)]).half())
    save_file({"audio": torch.stack(made), **_origin(scenes, seed)}, str(path))


def _origin(scenes: range, seed: int) -> dict[str, torch.Tensor]:
    """Which scenes of which world a file holds: captions of another world would teach to overhear captions."""
    return {"number": torch.tensor(list(scenes)), "seed": torch.full((len(scenes),), seed)}


@dataclass
class Clips:
    """Encoded chunks [scenes, START_CHUNKS + LATER_CHUNKS, tokens, channels]; of each scene, seed and number."""

    video: torch.Tensor
    audio: torch.Tensor
    subject: torch.Tensor
    seed: torch.Tensor
    number: torch.Tensor

    @classmethod
    def load(cls, folder: Path) -> "Clips":
        """All files of a folder; raises ``ValueError`` if frames and sounds are of different scenes."""
        frames, sounds = (
            [load_file(str(path)) for path in sorted(folder.glob(f"{kind}-*.safetensors"))]
            for kind in ("frames", "sounds")
        )
        video, subject, *seen = (torch.cat([f[n] for f in frames]) for n in ("video", "subject", "seed", "number"))
        audio, *heard = (torch.cat([f[name] for f in sounds]) for name in ("audio", "seed", "number"))
        if not all(map(torch.equal, seen, heard)):
            raise ValueError(f"{folder} holds frames of {len(video)} scenes and sounds of {len(audio)} others")
        return cls(video, audio, subject, *seen)

    def scene(self, index: int) -> Scene:
        """The scene that row ``index`` was encoded from."""
        return scene_of(int(self.seed[index]), int(self.number[index]))


@dataclass
class Batch:
    """Clips side by side. Rows of a clip: MEMORY memory chunks, then the chunks of the run.

    Args:
        video, audio: clean latents [clips, MEMORY + RUN, tokens, channels].
        subject: share of each video token that is the subject [clips, MEMORY + RUN, tokens].
        slots: position slot [clips, MEMORY + RUN].
        sees: [clips, RUN, CLEAN], which memory and earlier chunks of the run each chunk of the run looks at.
        knows: [clips, MEMORY, MEMORY], the same among memory chunks.
        anchor: [clips], whether row 0 is a subject anchor, of which only the subject's video tokens are seen.
        captions: texts, and ``caption`` [clips, MEMORY + RUN], which of them belongs to a row.
    """

    video: torch.Tensor
    audio: torch.Tensor
    subject: torch.Tensor
    slots: torch.Tensor
    sees: torch.Tensor
    knows: torch.Tensor
    anchor: torch.Tensor
    captions: list[str]
    caption: torch.Tensor


def draw(clips: Clips, seed: int, step: int, batch: int) -> Batch:
    """The batch of a step; a function of its arguments alone."""
    rng = random.Random(f"{seed}/batch/{step}")
    count = len(clips.number)
    picks, slots, caption, anchor = [], [], [], []
    captions: list[str] = []
    sees = torch.zeros(batch, RUN, CLEAN, dtype=torch.bool)
    knows = torch.eye(MEMORY, dtype=torch.bool).repeat(batch, 1, 1)
    for row in range(batch):
        one, other = rng.randrange(count), rng.randrange(count)
        recent, across = rng.choice(RECENT), rng.choice(ACROSS_CUT)
        members, run = _kind(rng)
        anchored = bool(members) and rng.random() < 0.35
        if anchored:
            members = [members[rng.randrange(len(members))], *members[: MEMORY - 1]]
        present = [False] * (MEMORY - len(members)) + [True] * len(members)
        if anchored and len(members) < MEMORY:  # row 0 is the anchor's, the others stand at the end
            present = [True] + [False] * (MEMORY - len(members)) + [True] * (len(members) - 1)
        filled = iter(members)
        picks.append([(one, next(filled) if p else 0) for p in present] + [((one, other)[w], c) for w, c in run])
        anchor.append(anchored)
        slots.append(_slots(rng, present))
        caption.append([len(captions)] * MEMORY + [len(captions) + w for w, _ in run])
        captions += [clips.scene(n).caption(rng) for n in (one, other)]
        for i, (which, _) in enumerate(run):
            first = min(j for j, (w, _) in enumerate(run) if w == which and all(v == which for v, _ in run[j : i + 1]))
            for j in range(max(0, i - recent, first - across if first else 0), i):
                sees[row, i, MEMORY + j] = True
            if run[first][1] == 0 and first < i:  # the scene began in this run: its first chunk is its sink
                sees[row, i, MEMORY + first] = True
            elif which == 0 and run[first][1]:
                sees[row, i, :MEMORY] = torch.tensor(present)
        for i in range(MEMORY):
            knows[row, i, int(anchored) : i] |= torch.tensor(present[int(anchored) : i], dtype=torch.bool) & (
                rng.random() < 0.8
            )
    index = torch.tensor(picks)
    video, audio, subject = (x[index[..., 0], index[..., 1]].float() for x in (clips.video, clips.audio, clips.subject))
    return Batch(
        video, audio, subject, torch.tensor(slots), sees, knows, torch.tensor(anchor), captions, torch.tensor(caption)
    )


def _kind(rng: random.Random) -> tuple[list[int], list[tuple[int, int]]]:
    """Memory chunks of scene 0 and the run as (scene, chunk), chunks counted as they are stored."""
    kind = rng.random()
    later = START_CHUNKS
    sink_and_anchors = [0, *sorted(rng.sample(range(1, START_CHUNKS), rng.choice((0, 1, 2, 2))))]
    if kind < 0.3:  # a stream begins
        return [], [(0, i) if i < START_CHUNKS else (1, 0) for i in range(RUN)]
    if kind < 0.55:  # a scene goes on
        begin = later + rng.randrange(LATER_CHUNKS - RUN + 1)
        return sink_and_anchors, [(0, begin + i) for i in range(RUN)]
    if kind < 0.75:  # a cut
        before = rng.randint(1, 3)
        begin = later + rng.randrange(4)
        return sink_and_anchors, [(0, begin + i) if i < before else (1, i - before) for i in range(RUN)]
    away = rng.randint(1, 3)  # a return: the scene's sink, anchors and last chunks come back
    begin = rng.randrange(2, START_CHUNKS - 1)
    restored = list(range(begin, begin + 2))
    memory = [0, *(i for i in sink_and_anchors[1:] if i < begin), *restored][-MEMORY:]
    return memory, [(1, i) if i < away else (0, later + i) for i in range(RUN)]


def _slots(rng: random.Random, present: list[bool]) -> list[int]:
    """Slots of memory and run: memory in order, before the run, nothing farther than the trained range."""
    room = SLOTS - RUN
    near = rng.choice((0, 0, rng.randint(0, room - MEMORY)))  # places between memory and run
    spread = rng.choice((0, 0, rng.randint(0, room - MEMORY - near)))
    memory = sorted(rng.sample(range(MEMORY + spread), MEMORY))
    begin = MEMORY + spread + near
    return [*memory, *range(begin, begin + RUN)]
