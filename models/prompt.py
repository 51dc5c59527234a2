"""A prompt as the backbone reads it: text embeddings per modality, identified by their content."""

import hashlib
from dataclasses import dataclass, field

import torch

from cache.spec import Modality
from errors import StreamError


@dataclass(frozen=True, eq=False)
class Prompt:
    """Text embeddings [tokens, channels] for video and for audio; equal content has an equal ``key``.

    Made by a text encoder and its connectors, outside of the backbone. Padding tokens must not be in it.
    """

    text: str
    video: torch.Tensor
    audio: torch.Tensor
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.video, self.audio):
            if tensor.ndim != 2 or not tensor.shape[0]:
                raise StreamError(
                    f"prompt embedding has shape {tuple(tensor.shape)}; expected [tokens, channels], not empty"
                )
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        object.__setattr__(self, "key", digest.hexdigest())

    @classmethod
    def without_padding(cls, text: str, video: torch.Tensor, audio: torch.Tensor, mask: torch.Tensor) -> "Prompt":
        """Embeddings [tokens, channels] less the tokens whose ``mask`` [tokens] is 0.

        The mask is the one that the text connectors return (their registers take the place of padding and are read);
        the tokenizer's would drop those registers.
        """
        kept = mask.bool()
        return cls(text, video[kept], audio[kept])


def hashed_prompt(text: str, video_channels: int, audio_channels: int, tokens: int = 8) -> Prompt:
    """Embeddings drawn at random from the text's hash: equal texts agree, others differ, nothing is understood.

    Stands in for a text encoder where the weights are random too. Raises ``StreamError`` for an empty text.
    """
    if not text.strip():
        raise StreamError("the prompt is empty; expected a description of what to show and hear")
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    embeddings = {
        Modality.VIDEO: torch.randn(tokens, video_channels, generator=generator),
        Modality.AUDIO: torch.randn(tokens, audio_channels, generator=generator),
    }
    return Prompt(text, embeddings[Modality.VIDEO], embeddings[Modality.AUDIO])
