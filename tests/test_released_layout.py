"""Released checkpoints' layout: decoders and text encoders from folders, with the numbers of the library's pipeline."""

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer

from errors import CheckpointError, ConfigError, StreamError
from models.backbone import random_transformer
from models.decoders import Codecs, StreamDecoder, load_codecs
from models.gemma import GemmaEncoder
from models.latents import pack_audio, pack_video
from models.shapes import ChunkGeometry
from tests import small_codecs as small
from tests.small_codecs import RELEASED, RELEASED_CONFIG, TOY, TOY_CONFIG, save, seeded, tokens

TEXT = "a red ball bounces"
MAX_TOKENS = 24


def connectors(**options: Any) -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": 8}
    return seeded(
        lambda: LTX2TextConnectors(
            **{
                "caption_channels": 16,
                "text_proj_in_factor": 3,
                **{f"{m}_connector_{k}": v for m in ("video", "audio") for k, v in sizes.items()},
                **options,
            }
        )
    )


def text_parts(**options: Any) -> dict[str, Any]:
    """A Gemma 3 of 19 thousand parameters whose tokens are letters."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    config = Gemma3Config(
        text_config={
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )
    return {
        "tokenizer": GemmaTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]),
        "text_encoder": seeded(lambda: Gemma3ForConditionalGeneration(config)),
        "connectors": connectors(**options),
    }


def released_folder(folder: Path) -> str:
    return save(folder, vae=small.video_vae(), audio_vae=small.mel_vae(), vocoder=small.vocoder())


def toy_folder(folder: Path) -> str:
    return save(folder, vae=small.frames_vae(), audio_vae=small.waveform_codec())


def decoded_at_once(codecs: Codecs, video: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    decoder = StreamDecoder(codecs)
    first, rest = decoder.push(video, audio), decoder.flush()
    return torch.cat([first.frames, rest.frames]), torch.cat([first.samples, rest.samples])


def test_codecs_of_a_toy_checkpoint_load_and_say_what_they_give(tmp_path: Path) -> None:
    codecs = load_codecs(toy_folder(tmp_path), TOY_CONFIG, TOY)
    assert (codecs.frame_size, codecs.fps, codecs.sample_rate, codecs.channels) == ((16, 32), Fraction(25, 2), 8000, 1)
    video, audio = tokens(codecs, 2, 8)
    frames, samples = decoded_at_once(codecs, video, audio)
    assert frames.shape == (2, 16, 32, 3)
    assert samples.shape == (8 * 160, 1)
    expected_frames, expected_samples = decoded_at_once(small.toy(), video, audio)
    assert torch.equal(frames, expected_frames)
    assert torch.equal(samples, expected_samples)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("timestep", [False, True])
def test_released_latents_become_what_the_librarys_pipeline_makes_of_them(
    tmp_path: Path, wide: bool, timestep: bool
) -> None:
    """One denoising step of the whole pipeline, its latents through ours, its frames and sound against ours."""
    vae, audio_vae = small.video_vae(timestep_conditioning=timestep), small.mel_vae()
    vocoder = small.wide_vocoder() if wide else small.vocoder()
    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        audio_vae=audio_vae,
        transformer=random_transformer(in_channels=8, out_channels=8, audio_in_channels=16, audio_out_channels=16),
        vocoder=vocoder,
        text_encoder=None,
        tokenizer=None,
        connectors=connectors(
            per_modality_projections=True, caption_channels=24, text_proj_in_factor=1, video_hidden_dim=24,
            audio_hidden_dim=24, video_connector_attention_head_dim=12, audio_connector_attention_head_dim=12,
        ),
    )  # fmt: skip
    return_latents, return_media = (
        pipeline(
            prompt_embeds=torch.ones(1, 8, 24),
            prompt_attention_mask=torch.ones(1, 8, dtype=torch.int64),
            height=64,
            width=96,
            num_frames=17,
            frame_rate=25.0,
            num_inference_steps=1,
            guidance_scale=1.0,
            audio_guidance_scale=1.0,
            stg_scale=0.0,
            audio_stg_scale=0.0,
            modality_scale=1.0,
            audio_modality_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type=kind,
            return_dict=False,
        )
        for kind in ("latent", "np")
    )
    video = LTX2Pipeline._normalize_latents(return_latents[0], vae.latents_mean, vae.latents_std, 0.7)[0]
    audio = pack_audio(return_latents[1][0])
    audio = (audio - audio_vae.latents_mean) / audio_vae.latents_std
    source = save(tmp_path, vae=vae, audio_vae=audio_vae, vocoder=vocoder)
    frames, samples = decoded_at_once(load_codecs(source, RELEASED_CONFIG, RELEASED), pack_video(video), audio)
    expected = torch.from_numpy(return_media[0][0])
    assert frames.shape == (17, 64, 96, 3)
    assert (frames / 255 - expected).abs().max() < 0.51 / 255
    torch.testing.assert_close(samples, return_media[1][0].T, atol=1e-5, rtol=1e-4)


def test_the_sound_is_decoded_in_full_precision_beside_frames_in_half(tmp_path: Path) -> None:
    codecs = load_codecs(toy_folder(tmp_path), TOY_CONFIG, TOY, dtype=torch.bfloat16)
    video, audio = tokens(codecs, 2, 8)
    frames, samples = decoded_at_once(codecs, video, audio)
    expected_frames, expected_samples = decoded_at_once(small.toy(), video, audio)
    assert (frames.float() - expected_frames.float()).abs().mean() < 2
    assert torch.equal(samples, expected_samples)


def test_missing_components_are_named(tmp_path: Path) -> None:
    for name in ("vae", "audio_vae", "vocoder"):
        source = Path(released_folder(tmp_path / name))
        shutil.rmtree(source / name)
        with pytest.raises(CheckpointError, match=f"has no readable {name}/config.json.*expected {name}/ with"):
            load_codecs(str(source), RELEASED_CONFIG, RELEASED)
    with pytest.raises(CheckpointError, match=r"no folder './nowhere'; expected a folder"):
        load_codecs("./nowhere", RELEASED_CONFIG, RELEASED)


def test_components_of_another_class_are_named(tmp_path: Path) -> None:
    source = Path(released_folder(tmp_path))
    shutil.rmtree(source / "vae")
    shutil.copytree(source / "audio_vae", source / "vae")
    wrong = "is of class 'AutoencoderKLLTX2Audio'; expected .*AutoencoderKL or AutoencoderKLLTX2Video"
    with pytest.raises(CheckpointError, match=wrong):
        load_codecs(str(source), RELEASED_CONFIG, RELEASED)


def test_damaged_and_incomplete_weights_are_refused(tmp_path: Path) -> None:
    source = toy_folder(tmp_path)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if k != "decoder.conv_in.weight"}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights \(decoder.conv_in.weight"):
        load_codecs(source, TOY_CONFIG, TOY)
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="cannot load vae/"):
        load_codecs(source, TOY_CONFIG, TOY)


def test_codecs_of_another_transformer_are_refused(tmp_path: Path) -> None:
    source = toy_folder(tmp_path)
    with pytest.raises(CheckpointError, match="has 32 latent channels; the transformer was trained with 128"):
        load_codecs(source, {**TOY_CONFIG, "in_channels": 128}, TOY)
    coarser = ChunkGeometry(2, 2, 4, 8, Fraction(25, 2), 1, 16, Fraction(1, 50), patch=2, patch_t=2)
    with pytest.raises(CheckpointError, match=r"has 8 pixels per latent; .* 16"):
        load_codecs(source, TOY_CONFIG, coarser)
    slower = ChunkGeometry(2, 2, 4, 4, Fraction(25, 2), 1, 8, Fraction(1, 25), patch=2, patch_t=2)
    with pytest.raises(CheckpointError, match=r"has 1/50 seconds per latent; .* 1/25"):
        load_codecs(source, TOY_CONFIG, slower)


@pytest.mark.parametrize(
    "options",
    [{}, {"per_modality_projections": True, "video_hidden_dim": 16, "audio_hidden_dim": 16}],
    ids=["ltx-2.0", "ltx-2.3"],
)
def test_a_prompt_is_encoded_as_the_librarys_pipeline_does(tmp_path: Path, options: dict[str, Any]) -> None:
    parts = text_parts(**options)
    encoder = GemmaEncoder.load(save(tmp_path, **parts), dtype=torch.float32, max_tokens=MAX_TOKENS)
    pipeline = LTX2Pipeline(None, None, None, transformer=None, vocoder=None, **parts)
    with torch.no_grad():
        states, mask, _, _ = pipeline.encode_prompt(
            TEXT, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
        )
        video, audio, _ = pipeline.connectors(states, mask, padding_side="left")
    prompt = encoder(TEXT)
    assert torch.equal(prompt.video, video[0])
    assert torch.equal(prompt.audio, audio[0])
    assert prompt.key == encoder(TEXT).key != encoder("a blue box").key


def test_registers_take_the_place_of_padding() -> None:
    parts = text_parts()
    prompt = GemmaEncoder(**parts, max_tokens=MAX_TOKENS)(TEXT)
    assert len(TEXT) < len(prompt.video) == len(prompt.audio) == MAX_TOKENS
    with pytest.raises(ConfigError, match="multiple of the 8"):
        GemmaEncoder(**parts, max_tokens=20)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(StreamError, match="prompt is empty"):
        GemmaEncoder(**text_parts(), max_tokens=MAX_TOKENS)(" \n")


def test_missing_and_damaged_text_components_are_named(tmp_path: Path) -> None:
    parts = text_parts()
    for name in parts:
        source = tmp_path / name
        save(source, **{part: component for part, component in parts.items() if part != name})
        with pytest.raises(CheckpointError, match=f"no readable {name}/"):
            GemmaEncoder.load(str(source))
    source = tmp_path / "damaged"
    save(source, **parts)
    weights = source / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    missing = next(name for name in sorted(tensors) if name.startswith("language_model"))
    save_file({k: v for k, v in tensors.items() if k != missing}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"text_encoder/ of .* lacks 1 weights"):
        GemmaEncoder.load(str(source))
    weights.write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match="cannot load text_encoder/"):
        GemmaEncoder.load(str(source))
    shutil.copy(source / "connectors" / "config.json", source / "text_encoder" / "config.json")
    with pytest.raises(CheckpointError, match="text_encoder"):
        GemmaEncoder.load(str(source))
