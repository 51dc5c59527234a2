"""A stream's latents to frames and samples, chunk by chunk, without a seen or heard border.

A chunk is decoded together with the last latents before it. Decoders that look ahead do not know a chunk's end before
the next has come: the last latents are held back, and where one decoding gives way to the next the two are blended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch

from errors import CheckpointError, SnapshotMismatch, StreamError
from models.codec import Codec, Sound
from models.components import by_name, load_component
from models.frame_codecs import CausalVideo, FoldedFrames
from models.latents import unpack_audio, unpack_video
from models.shapes import ChunkGeometry
from models.sound_codecs import FoldedSound, MelSound


class Media(NamedTuple):
    """What a viewer gets, on the CPU: frames uint8 [n, height, width, 3], samples float32 [m, channels] in [−1, 1].

    Both begin where those of the call before ended. They need not last equally long: more may be held back of one, and
    the first latents of a stream may give less. Frames and samples keep time by being counted.
    """

    frames: torch.Tensor
    samples: torch.Tensor


@dataclass(frozen=True)
class Codecs:
    """The two decoders of a model; shared by all streams."""

    geometry: ChunkGeometry
    frames: Codec
    sound: Sound

    @property
    def fps(self) -> Fraction:
        """Frames per second."""
        return self.geometry.fps

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        height, width = self.frames.output.shape[1:3]
        return height, width

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.sound.sample_rate

    @property
    def channels(self) -> int:
        """1 for mono, 2 for stereo."""
        return self.sound.channels

    def unpack(self, video: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [tokens, channels] to latents [channels, frames, height, width] and [channels, steps, bins].

        Raises:
            StreamError: the tokens are not those of whole latent frames, or of another model.
        """
        g = self.geometry
        channels, height, width = self.frames.latent_shape
        sound_channels, bins = self.sound.latent_shape
        per_frame = (height // g.patch) * (width // g.patch)
        for name, tokens, count, size in (
            ("video", video, per_frame, channels * g.patch**2 * g.patch_t),
            ("audio", audio, 1, sound_channels * bins * g.audio_patch),
        ):
            if tokens.ndim != 2 or not len(tokens) or len(tokens) % count or tokens.shape[1] != size:
                raise StreamError(
                    f"{name} tokens have shape {tuple(tokens.shape)}; expected [a multiple of {count}, {size}]"
                )
        return (
            unpack_video(video, height, width, g.patch, g.patch_t),
            unpack_audio(audio, sound_channels, g.audio_patch),
        )


@dataclass(frozen=True)
class Tail:
    """What the next chunk of one modality needs of those before it; bounded by the codec.

    Args:
        latents: [channels, context + held, ...], at most ``past`` of context and ``ahead`` held back.
        context: how many of them are published.
        border: the first outputs [≤ fade, ...] of what is held back, as decoded without knowing what follows.
    """

    latents: torch.Tensor
    context: int
    border: torch.Tensor

    @classmethod
    def empty(cls, codec: Codec) -> "Tail":
        """Before a stream's first chunk."""
        channels, *rest = codec.latent_shape
        return cls(torch.empty(channels, 0, *rest), 0, codec.output)


@torch.no_grad()
def advance(codec: Codec, tail: Tail, latents: torch.Tensor | None) -> tuple[Tail, torch.Tensor]:
    """Decode what ``latents`` [channels, steps, ...] make known, or with ``None`` all that was held back.

    Returns the new tail and outputs that follow those of the call before.
    """
    window = tail.latents if latents is None else torch.cat([tail.latents.to(latents), latents], dim=1)
    steps = window.shape[1]
    held = 0 if latents is None else min(codec.ahead, steps - tail.context)
    published = steps - held
    if published == tail.context:
        return Tail(window, tail.context, tail.border), codec.output
    outputs = codec.decode(window)
    if tail.context:
        outputs = outputs[-(steps - tail.context) * codec.ratio :]
    border = len(outputs) - held * codec.ratio
    outputs = outputs[: border + codec.fade].cpu()
    first = max(0, published - codec.past)
    following = Tail(window[:, first:].clone(), published - first, outputs[border:].clone())
    return following, _blend(tail.border, outputs[:border])


def _blend(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """``after``, reached from ``before`` (its first outputs as decoded earlier) by a raised cosine."""
    count = len(before)
    if not count:
        return after
    # Not torch's default type: another thread that loads a model changes that for a moment.
    share = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(count, dtype=torch.float32) + 0.5) / count)
    share = share.view(-1, *[1] * (after.ndim - 1))
    # lerp leaves what is equal in both as it is, to the last bit.
    mixed = torch.lerp(before.float(), after[:count].float(), share)
    if not after.is_floating_point():
        mixed = mixed.round()
    return torch.cat([mixed.to(after.dtype), after[count:]])


class StreamDecoder:
    """The decoding of one stream; nothing in it grows with the stream."""

    def __init__(self, codecs: Codecs, tails: tuple[Tail, Tail] | None = None) -> None:
        self.codecs = codecs
        self._video, self._audio = tails or (Tail.empty(codecs.frames), Tail.empty(codecs.sound))

    def push(self, video: torch.Tensor, audio: torch.Tensor) -> Media:
        """The media that a chunk of clean latents makes known, as tokens [tokens, channels] of both modalities.

        Raises:
            StreamError: the tokens are of another model, or not whole latent frames; nothing was changed.
        """
        new_video, new_audio = self.codecs.unpack(video, audio)
        return self._advance(new_video.float(), new_audio.float())

    def flush(self) -> Media:
        """What was held back, at the end of the stream.

        A later ``push`` goes on after it, but with a border: what followed was not known.
        """
        return self._advance(None, None)

    def fork(self) -> "StreamDecoder":
        """A second decoder with the same past."""
        return StreamDecoder(self.codecs, (self._video, self._audio))

    def state(self) -> dict[str, torch.Tensor]:
        """All that ``resume`` needs, as tensors on the CPU, none of them empty."""
        found: dict[str, torch.Tensor] = {}
        for name, tail in (("video", self._video), ("audio", self._audio)):
            parts = {"latents": tail.latents, "context": torch.tensor([tail.context]), "border": tail.border}
            found |= {f"{name}.{part}": tensor.cpu().clone() for part, tensor in parts.items() if tensor.numel()}
        return found

    @classmethod
    def resume(cls, codecs: Codecs, state: Mapping[str, torch.Tensor]) -> "StreamDecoder":
        """Go on from ``state``, as if it had never stopped.

        Raises:
            SnapshotMismatch: it is not the state of a decoder of such codecs.
        """
        tails = _tail("video", codecs.frames, state), _tail("audio", codecs.sound, state)
        return cls(codecs, tails)

    def _advance(self, video: torch.Tensor | None, audio: torch.Tensor | None) -> Media:
        video_tail, frames = advance(self.codecs.frames, self._video, video)
        audio_tail, samples = advance(self.codecs.sound, self._audio, audio)
        self._video, self._audio = video_tail, audio_tail
        return Media(frames, samples)


def _tail(name: str, codec: Codec, state: Mapping[str, torch.Tensor]) -> Tail:
    empty = Tail.empty(codec)
    tail = Tail(
        state.get(f"{name}.latents", empty.latents),
        int(state.get(f"{name}.context", torch.zeros(1))),
        state.get(f"{name}.border", empty.border),
    )
    for what, found, wanted, axis in (
        ("latents", tail.latents, empty.latents, 1),
        ("border", tail.border, empty.border, 0),
    ):
        if found.dtype != wanted.dtype or _without(found, axis) != _without(wanted, axis):
            raise SnapshotMismatch(
                f"the state's {name} {what} have shape {tuple(found.shape)} of {found.dtype}; these codecs give "
                f"{tuple(wanted.shape)} of {wanted.dtype}, with more than 0 at axis {axis}"
            )
    held = tail.latents.shape[1] - tail.context
    if not 0 <= tail.context <= codec.past or not 0 <= held <= codec.ahead or len(tail.border) > codec.fade:
        raise SnapshotMismatch(
            f"the state's {name} has {tail.context} latents of context, holds {held} back and fades {len(tail.border)} "
            f"outputs; these codecs keep {codec.past}, {codec.ahead} and {codec.fade} at most"
        )
    return tail


def _without(tensor: torch.Tensor, axis: int) -> list[int]:
    return [size for i, size in enumerate(tensor.shape) if i != axis]


def load_codecs(
    source: str,
    transformer_config: Mapping[str, Any],
    geometry: ChunkGeometry,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Codecs:
    """The decoders of a checkpoint in diffusers' layout: ``vae/``, ``audio_vae/`` and, for mel, ``vocoder/``.

    Args:
        source: a pipeline's folder or hub id.
        transformer_config: of the transformer whose latents are decoded.
        dtype: of the frames' decoder. Sound is decoded in float32: it costs little, and 8 bits of mantissa are heard.

    Raises:
        CheckpointError: a component is missing, damaged, of another class, or does not fit the transformer.
    """
    from diffusers import AutoencoderKL, AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, AutoencoderOobleck
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    vae = load_component(source, "vae", by_name(AutoencoderKL, AutoencoderKLLTX2Video), dtype, device)
    frames: FoldedFrames | CausalVideo
    if isinstance(vae, AutoencoderKL):
        frames = FoldedFrames(vae, geometry.height, geometry.width)
    else:
        frames = CausalVideo.of(vae, geometry.height, geometry.width)
    heard = by_name(AutoencoderOobleck, AutoencoderKLLTX2Audio)
    audio_vae = load_component(source, "audio_vae", heard, torch.float32, device)
    sound: Sound
    if isinstance(audio_vae, AutoencoderOobleck):
        sound = FoldedSound.of(audio_vae)
    else:
        vocoders = by_name(LTX2Vocoder, LTX2VocoderWithBWE)
        sound = MelSound.of(audio_vae, load_component(source, "vocoder", vocoders, torch.float32, device))
    _check_fit(source, transformer_config, geometry, frames, sound)
    return Codecs(geometry, frames, sound)


def _check_fit(
    source: str,
    config: Mapping[str, Any],
    geometry: ChunkGeometry,
    frames: FoldedFrames | CausalVideo,
    sound: Sound,
) -> None:
    g = geometry
    channels, bins = sound.latent_shape
    for component, what, found, expected in (
        ("vae", "latent channels", frames.latent_shape[0] * g.patch**2 * g.patch_t, config["in_channels"]),
        ("vae", "pixels per latent", frames.scale, g.spatial_scale),
        ("vae", "frames per latent", frames.ratio, g.temporal_scale),
        ("audio_vae", "latent channels", channels * bins * g.audio_patch, config["audio_in_channels"]),
        ("audio_vae", "seconds per latent", Fraction(sound.ratio, sound.sample_rate), g.audio_latent_seconds),
    ):
        if found != expected:
            raise CheckpointError(
                f"{component}/ of {source!r} has {found} {what}; the transformer was trained with {expected}. Take "
                f"{component}/ from the checkpoint that the transformer was trained with"
            )
