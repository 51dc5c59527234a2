"""The small segmenter that ships with the toy model: a convolutional network that a sentence embedding steers."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, silu

from errors import CheckpointError
from models.prompt import Prompt
from models.segmenter import Finding, at_frame_size, check_request
from models.text_encoder import MINI_LM, SentenceEncoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
REMEMBERED_TEXTS = 64


@dataclass(frozen=True)
class SegmenterConfig:
    """What a ``SegmenterNet`` is made of.

    Args:
        side: frames are looked at as ``side`` × ``side`` pixels.
        fold: pixels per side that the network sees as channels of one.
        widths: channels at 1/fold, half and a quarter of that resolution.
        style: channels that the sentence is reduced to; looks: places that the verdict is gathered from.
        text_encoder: what made the embeddings in training; no other fits.
    """

    side: int = 128
    fold: int = 4
    widths: tuple[int, int, int] = (32, 64, 80)
    text_channels: int = 384
    style: int = 64
    looks: int = 4
    text_encoder: str = f"package:{MINI_LM}"


class Block(nn.Module):
    """A residual convolution of its normalised input, that a sentence may scale and shift (FiLM, Perez et al. 2018)."""

    def __init__(self, channels: int, style: int = 0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(style, 2 * channels) if style else None

    def forward(self, x: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, channels, height, width], and [batch, style] if steered, to [batch, channels, height, width]."""
        normal = self.norm(x)
        if self.film is not None:
            scale, shift = self.film(style)[:, :, None, None].chunk(2, dim=1)
            normal = normal * (1 + scale) + shift
        residual: torch.Tensor = self.conv(silu(normal))
        return x + residual


class SegmenterNet(nn.Module):
    """An encoder of the frame, a decoder that a sentence steers, and a verdict from where the sentence makes it look.

    0.33 M parameters. The encoder has not read the sentence, so that many sentences can be judged for the price of one.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        style = config.style
        self.text_norm, self.style_norm = nn.LayerNorm(config.text_channels), nn.LayerNorm(style)
        self.text_proj_in = nn.Linear(config.text_channels, style)
        self.conv_in = nn.Conv2d(3 * config.fold**2, fine, 3, padding=1)
        self.fine, self.middle, self.coarse = Block(fine), Block(middle), Block(coarse)
        self.to_middle = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.to_coarse = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.from_coarse, self.from_middle = nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)
        self.middle_out, self.fine_out = Block(middle, style), Block(fine, style)
        self.fine_norm, self.middle_norm = nn.GroupNorm(8, fine), nn.GroupNorm(8, middle)
        self.conv_out = nn.Conv2d(fine, config.fold**2, 3, padding=1)
        self.look = nn.Linear(style, config.looks * middle)
        self.gather = nn.Linear(config.looks * middle, style)
        self.compare = nn.Linear(style, 2 * style)
        self.verdict_proj_out = nn.Linear(style, 1)

    def forward(self, pictures: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the masks of each picture's first sentence [batch, side, side] and of presence [batch, sentences].

        ``pictures`` [batch, 3, side, side] in [−1, 1]; ``text`` [batch, sentences, text_channels], means of tokens.
        """
        style = self.style_norm(self.text_proj_in(self.text_norm(text)))
        fine = self.fine(self.conv_in(pixel_unshuffle(pictures, self.config.fold)))
        middle = self.middle(self.to_middle(fine))
        coarse = self.coarse(self.to_coarse(middle))
        middle = middle + interpolate(self.from_coarse(coarse), scale_factor=2.0)
        first = style[:, 0]
        steered = self.middle_out(middle, first)
        fine = self.fine_out(fine + interpolate(self.from_middle(steered), scale_factor=2.0), first)
        masks = pixel_shuffle(self.conv_out(silu(self.fine_norm(fine))), self.config.fold)[:, 0]
        return masks, self._presence(middle, style)

    def _presence(self, features: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] and [batch, sentences, style] to logits [batch, sentences]."""
        places = silu(self.middle_norm(features)).flatten(2)
        queries = self.look(style).unflatten(2, (self.config.looks, -1))
        where = (torch.einsum("bslc,bcp->bslp", queries, places) / places.shape[1] ** 0.5).softmax(-1)
        gathered = self.gather(torch.einsum("bslp,bcp->bslc", where, places).flatten(2))
        scale, shift = self.compare(style).chunk(2, dim=2)
        presence: torch.Tensor = self.verdict_proj_out(silu(gathered * scale + shift))[:, :, 0]
        return presence

    def save_pretrained(self, folder: Path) -> None:
        """Write the configuration and the weights (half precision) into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: Path) -> "SegmenterNet":
        """The network that was saved in ``folder``, float32; raises ``CheckpointError`` if there is none."""
        try:
            plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            net = cls(SegmenterConfig(**{**plain, "widths": tuple(plain["widths"])}))
            net.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"no toy segmenter in {str(folder)!r}: {error}; expected {CONFIG} and {WEIGHTS}"
            ) from error
        return net.eval().requires_grad_(False)


def mean_of_tokens(prompt: Prompt) -> torch.Tensor:
    """A sentence's embedding [channels]."""
    return prompt.video.float().mean(0)


class ToySegmenter:
    """A segmenter for the toy world: its score is the probability that the described subject is in the frame."""

    def __init__(self, net: SegmenterNet, encode: Callable[[str], Prompt]) -> None:
        """``encode`` must give the embeddings of the network's ``text_encoder``; recent texts are remembered."""
        self.net = net
        self._embed = lru_cache(REMEMBERED_TEXTS)(lambda text: mean_of_tokens(encode(text)))

    @classmethod
    def load(
        cls, folder: str | Path, encode: Callable[[str], Prompt] | None = None, device: str = "cpu"
    ) -> "ToySegmenter":
        """From ``folder``, with the text encoder that it names unless the caller shares one.

        Raises:
            CheckpointError: no such network there, or no such text encoder.
        """
        net = SegmenterNet.from_pretrained(Path(folder))
        return cls(net.to(device), encode or SentenceEncoder.load(net.config.text_encoder))

    @torch.inference_mode()
    def score(self, frames: torch.Tensor, description: str) -> Finding:
        """See ``Segmenter.score``; raises ``CheckpointError`` if the text encoder is not the network's."""
        check_request(frames, description)
        text, config = self._embed(description), self.net.config
        if text.shape != (config.text_channels,):
            raise CheckpointError(
                f"the text encoder gives {tuple(text.shape)} channels; expected {config.text_channels} of "
                f"{config.text_encoder}"
            )
        device = self.net.conv_in.weight.device
        pictures = frames.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        if pictures.shape[2:] != (config.side, config.side):
            pictures = interpolate(pictures, (config.side, config.side), mode="bilinear", antialias=True)
        masks, presence = self.net(pictures, text.to(device).expand(len(frames), 1, -1))
        return Finding(presence[:, 0].sigmoid().cpu(), at_frame_size(masks.sigmoid(), frames))
