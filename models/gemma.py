"""Text encoding of released LTX-2 checkpoints: Gemma and the connectors, through the library's own pipeline."""

from typing import Any

import torch

from errors import CheckpointError, ConfigError, StreamError
from models.components import LOAD_ERRORS, by_name, check_source, load_component
from models.prompt import Prompt

ENCODERS = ("Gemma3ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration")


class GemmaEncoder:
    """``tokenizer``, ``text_encoder`` and ``connectors`` of a checkpoint; the numbers are those of ``LTX2Pipeline``.

    Args:
        max_tokens: longer prompts are cut, shorter ones padded; the connectors put learned registers in the place of
            padding, which are read like tokens.

    Raises:
        ConfigError: ``max_tokens`` is not a multiple of the number of registers.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, connectors: Any, max_tokens: int = 1024) -> None:
        from diffusers import LTX2Pipeline

        for name in ("video_connector_num_learnable_registers", "audio_connector_num_learnable_registers"):
            registers = connectors.config[name]
            if registers and max_tokens % registers:
                raise ConfigError(f"max_tokens is {max_tokens}; expected a multiple of the {registers} of {name}")
        self.pipeline: Any = LTX2Pipeline(
            scheduler=None,
            vae=None,
            audio_vae=None,
            text_encoder=text_encoder.eval().requires_grad_(False),
            tokenizer=tokenizer,
            connectors=connectors.eval().requires_grad_(False),
            transformer=None,
            vocoder=None,
        )
        self.max_tokens = max_tokens

    @classmethod
    def load(
        cls, source: str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, max_tokens: int = 1024
    ) -> "GemmaEncoder":
        """From a pipeline's folder or hub id, of which only the text components are read.

        Raises:
            CheckpointError: a text component is missing, damaged, incomplete or of another class.
        """
        from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

        check_source(source)
        tokenizer = _tokenizer(source)
        text_encoder = _text_encoder(source, dtype).to(device)
        connectors = load_component(source, "connectors", by_name(LTX2TextConnectors), dtype, device)
        return cls(tokenizer, text_encoder, connectors, max_tokens)

    @torch.inference_mode()
    def __call__(self, text: str) -> Prompt:
        """Embeddings [tokens, channels] of ``text``; raises ``StreamError`` if it is empty."""
        if not text.strip():
            raise StreamError("the prompt is empty; expected a description of what to show and hear")
        pipeline = self.pipeline
        states, mask, _, _ = pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_tokens,
            device=pipeline.text_encoder.device,
        )
        video, audio, kept = pipeline.connectors(states, mask, padding_side=pipeline.tokenizer.padding_side)
        return Prompt.without_padding(text, video[0].cpu(), audio[0].cpu(), kept[0].cpu())


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, subfolder="tokenizer")
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{source!r} has no readable tokenizer/: {error}; expected that of Gemma") from error
    # Without files the library makes one that knows special tokens only, and every word is unknown to it.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(f"{source!r} has no vocabulary in tokenizer/; expected that of Gemma")
    return tokenizer


def _text_encoder(source: str, dtype: torch.dtype) -> Any:
    import transformers

    expected = f"text_encoder/ with a config.json for {' or '.join(ENCODERS)} and its safetensors"
    try:
        config = transformers.AutoConfig.from_pretrained(source, subfolder="text_encoder")
    except LOAD_ERRORS as error:
        raise CheckpointError(
            f"{source!r} has no readable text_encoder/config.json: {error}; expected {expected}"
        ) from error
    found = [name for name in config.architectures or () if name in ENCODERS]
    if not found:
        raise CheckpointError(f"text_encoder/ of {source!r} is for {config.architectures}; expected {expected}")
    try:
        model, loading = getattr(transformers, found[0]).from_pretrained(
            source, subfolder="text_encoder", dtype=dtype, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise CheckpointError(f"cannot load text_encoder/ of {source!r}: {error}; expected {expected}") from error
    # What is missing is filled with random numbers; pictures are not read here.
    missing = sorted(key for key in loading["missing_keys"] if "language_model" in key)
    if missing:
        names = ", ".join(missing[:3])
        raise CheckpointError(
            f"text_encoder/ of {source!r} lacks {len(missing)} weights ({names}, …); expected {expected}"
        )
    return model
