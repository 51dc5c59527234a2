"""The geometry of a chunk: latent frames and audio latents of the same media time, as tokens and as seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from cache.spec import Modality
from errors import GeometryError


@dataclass(frozen=True)
class ChunkGeometry:
    """A chunk of ``frames`` latent video frames of ``height`` × ``width`` latents and ``audio_latents`` audio latents.

    Args:
        fps: frames per second of the decoded video.
        temporal_scale: decoded frames per latent frame; spatial_scale: decoded pixels per latent, per side.
        audio_latent_seconds: duration of one audio latent.
        patch, patch_t, audio_patch: latents per token, per axis.
        causal_offset: the model's: the first latent frame of a stream decodes to this many frames.

    Raises:
        GeometryError: video and audio do not last equally long, or do not divide into patches.
    """

    frames: int
    height: int
    width: int
    audio_latents: int
    fps: Fraction
    temporal_scale: int = 8
    spatial_scale: int = 32
    audio_latent_seconds: Fraction = Fraction(1, 25)
    audio_scale: int = 4
    patch: int = 1
    patch_t: int = 1
    audio_patch: int = 1
    causal_offset: int = 1

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "audio_latents"):
            if getattr(self, name) < 1:
                raise GeometryError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name, value, patch in (
            ("frames", self.frames, self.patch_t),
            ("height", self.height, self.patch),
            ("width", self.width, self.patch),
            ("audio_latents", self.audio_latents, self.audio_patch),
        ):
            if value % patch:
                raise GeometryError(f"{name} is {value}; expected a multiple of the model's patch size {patch}")
        audio = self.audio_latents * self.audio_latent_seconds
        if audio != self.seconds:
            raise GeometryError(
                f"{self.frames} latent frames last {self.seconds} s but {self.audio_latents} audio latents {audio} s; "
                f"expected {self.seconds / self.audio_latent_seconds} audio latents (a whole number of both)"
            )

    @classmethod
    def of_model(
        cls, config: Mapping[str, Any], frames: int, height: int, width: int, fps: float | Fraction
    ) -> "ChunkGeometry":
        """The geometry of ``frames`` latent frames of ``height`` × ``width`` *pixels* for a transformer's config.

        Raises:
            GeometryError: pixels do not divide into latents, or the frames' time not into whole audio latents.
        """
        temporal, *spatial = config["vae_scale_factors"]
        for name, value, scale in (("height", height, spatial[0]), ("width", width, spatial[1])):
            if value % scale:
                raise GeometryError(f"{name} is {value} pixels; expected a multiple of {scale}")
        rate = Fraction(fps).limit_denominator(1001)
        if rate <= 0:
            raise GeometryError(f"fps is {fps}; expected a frame rate above 0")
        latent = Fraction(
            int(config["audio_scale_factor"]) * int(config["audio_hop_length"]), int(config["audio_sampling_rate"])
        )
        audio = frames * temporal / rate / latent
        if audio.denominator != 1:
            raise GeometryError(
                f"{frames} latent frames at {rate} fps last {float(frames * temporal / rate):.4f} s, which is {audio} "
                f"audio latents of {float(latent):.4f} s; choose frames as a multiple of "
                f"{(temporal / rate / latent).denominator}"
            )
        return cls(
            frames=frames,
            height=height // spatial[0],
            width=width // spatial[1],
            audio_latents=int(audio),
            fps=rate,
            temporal_scale=temporal,
            spatial_scale=spatial[0],
            audio_latent_seconds=latent,
            audio_scale=int(config["audio_scale_factor"]),
            patch=int(config["patch_size"]),
            patch_t=int(config["patch_size_t"]),
            audio_patch=int(config["audio_patch_size_t"]),
            causal_offset=int(config["causal_offset"]),
        )

    @property
    def seconds(self) -> Fraction:
        """Duration of a chunk, exactly."""
        return self.frames * self.temporal_scale / self.fps

    @property
    def video_tokens(self) -> int:
        """Video tokens per chunk."""
        return (self.frames // self.patch_t) * (self.height // self.patch) * (self.width // self.patch)

    @property
    def audio_tokens(self) -> int:
        """Audio tokens per chunk."""
        return self.audio_latents // self.audio_patch

    def tokens(self, modality: Modality) -> int:
        """Tokens per chunk of one modality."""
        return self.video_tokens if modality is Modality.VIDEO else self.audio_tokens

    def position_slots(self, trained_seconds: float) -> int:
        """Chunk slots in the trained range of the time axis (31 for 0.64 s chunks and 20 s)."""
        return int(Fraction(trained_seconds) / self.seconds)

    def coordinates(self, modality: Modality, lead: bool) -> torch.Tensor:
        """Midpoints of the tokens in a chunk at time 0: [3, tokens] (s, px, px) for video, [1, tokens] (s) for audio.

        float64. ``lead``: the stream's first chunk, whose first latent frame decodes to ``causal_offset`` frames only;
        its bounds are clamped at 0, as the library does.
        """
        if modality is Modality.AUDIO:
            step = self.audio_latent_seconds / self.audio_scale
            return _midpoints(self.audio_latents, self.audio_patch, self.audio_scale, self.causal_offset, step, lead)[
                None
            ]
        time = _midpoints(self.frames, self.patch_t, self.temporal_scale, self.causal_offset, 1 / self.fps, lead)
        sides = [
            (torch.arange(0, side, self.patch, dtype=torch.float64) + self.patch / 2) * self.spatial_scale
            for side in (self.height, self.width)
        ]
        return torch.stack(torch.meshgrid(time, *sides, indexing="ij")).flatten(1)


def _midpoints(count: int, patch: int, scale: int, offset: int, step: Fraction, lead: bool) -> torch.Tensor:
    starts = torch.arange(0, count, patch, dtype=torch.float64) * scale + (offset - scale)
    ends = starts + patch * scale
    if lead:
        starts, ends = starts.clamp(min=0), ends.clamp(min=0)
    return (starts + ends) / 2 * step.numerator / step.denominator
