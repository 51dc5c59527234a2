"""Loading checkpoints of the family and refusing others; text keys and values shared by content."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cache.spec import TYPES
from errors import CheckpointError, GeometryError, StreamError
from models.backbone import Backbone, fingerprint, load_transformer, random_transformer
from models.prompt import Prompt, hashed_prompt
from models.shapes import ChunkGeometry
from models.text_cache import TextCache, TextEntry
from streams.stream import Stream
from tests.builders import FAMILIES, architecture, backbone, engine


def test_a_folder_a_pipeline_folder_and_a_single_file_give_the_same_model(tmp_path: Path) -> None:
    transformer = random_transformer(seed=3)
    transformer.save_pretrained(tmp_path / "plain")
    transformer.save_pretrained(tmp_path / "pipeline" / "transformer")
    single = tmp_path / "single"
    single.mkdir()
    # The layout of the released single files: the family's own prefix, and the config beside it.
    weights = {f"model.diffusion_model.{k}": v.contiguous() for k, v in transformer.state_dict().items()}
    save_file(weights, single / "model.safetensors")
    (single / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    geometry = ChunkGeometry.of_model(transformer.config, 2, 64, 96, 25)
    expected = fingerprint(transformer, geometry)
    for source in (tmp_path / "plain", tmp_path / "pipeline", single / "model.safetensors"):
        loaded = load_transformer(str(source), dtype=torch.float32)
        assert fingerprint(loaded, geometry) == expected, source


def test_a_checkpoint_of_another_family_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "wan"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    with pytest.raises(
        CheckpointError, match="is of class 'WanTransformer3DModel'; expected LTX2VideoTransformer3DModel"
    ):
        load_transformer(str(other))
    with pytest.raises(CheckpointError, match="is not a readable model configuration"):
        load_transformer(str(tmp_path))
    with pytest.raises(CheckpointError, match="expected a model folder"):
        load_transformer(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no file"):
        load_transformer(str(tmp_path / "nothing.safetensors"))
    with pytest.raises(CheckpointError, match="the model is a Linear; expected diffusers' LTX2VideoTransformer3DModel"):
        Backbone(torch.nn.Linear(2, 2), backbone().geometry)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    transformer = random_transformer()
    transformer.save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot load a transformer of the LTX-2 family"):
        load_transformer(str(tmp_path))


def test_fingerprints_differ_by_weights_configuration_and_geometry() -> None:
    geometry = backbone().geometry
    other = ChunkGeometry.of_model(random_transformer().config, 2, 32, 96, 25)
    prints = {
        fingerprint(random_transformer(), geometry),
        fingerprint(random_transformer(), other),
        fingerprint(random_transformer(seed=1), geometry),
        fingerprint(random_transformer(rope_type="interleaved"), geometry),
    }
    assert len(prints) == 4
    assert fingerprint(random_transformer(), geometry) in prints


def test_sizes_equal_those_of_the_design_for_ltx_2() -> None:
    """302 MB and 151 MB per latent video frame, 0.39 MB per audio latent, 31 slots; no weights needed."""
    from types import SimpleNamespace

    config = {"vae_scale_factors": (8, 32, 32), "audio_scale_factor": 4, "audio_hop_length": 160,
              "audio_sampling_rate": 16000, "patch_size": 1, "patch_size_t": 1, "audio_patch_size_t": 1,
              "causal_offset": 1}  # fmt: skip
    geometry = ChunkGeometry.of_model(config, frames=2, height=512, width=768, fps=25)
    assert (geometry.video_tokens, geometry.audio_tokens, geometry.position_slots(20)) == (768, 16, 31)
    bare = Backbone.__new__(Backbone)
    bare.geometry, bare.dtype = geometry, torch.bfloat16
    bare.config = SimpleNamespace(num_layers=48, num_attention_heads=32, attention_head_dim=128,
                                  audio_num_attention_heads=32, audio_attention_head_dim=64)  # fmt: skip
    sizes = {t.value: round(s.bytes_per_chunk / 1e6, 2) for t, s in bare.specs().items()}
    assert sizes == {"video_self": 603.98, "audio_self": 6.29, "audio_to_video": 6.29, "video_to_audio": 301.99}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 2, "height": 60, "width": 96, "fps": 25}, "height is 60 pixels; expected a multiple of 32"),
        ({"frames": 1, "height": 64, "width": 96, "fps": 24}, "choose frames as a multiple of 3"),
        ({"frames": 1, "height": 64, "width": 96, "fps": 1e-9}, "expected a frame rate above 0"),
        ({"frames": 0, "height": 64, "width": 96, "fps": 25}, "frames is 0; expected at least 1"),
    ],
)
def test_a_chunk_geometry_that_does_not_divide_is_refused(given: dict, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        ChunkGeometry.of_model(random_transformer().config, **given)


def test_a_patch_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(GeometryError, match="width is 3; expected a multiple of the model's patch size 2"):
        ChunkGeometry.of_model(random_transformer(patch_size=2).config, 2, 64, 96, 25)


def test_equal_prompts_are_encoded_once_for_all_streams() -> None:
    made = engine(backbone("ltx-2.0"))
    cache = made.backbone.text_cache
    before = cache.misses
    streams = [Stream.open(made, "one and the same text", seed=s) for s in range(3)]
    made.step([s.session for s in streams])
    assert cache.misses == before + 1
    Stream.open(engine(made.backbone), "one and the same text").next()
    assert cache.misses == before + 1


def test_text_depends_on_the_noise_level_where_the_family_modulates_the_prompt() -> None:
    """LTX-2.3's prompt adaln: one entry per level of the schedule; LTX-2.5 dropped it."""
    for family, levels in (("ltx-2.3", 3), ("ltx-2.5", 1)):
        model = backbone(family)
        before = model.text_cache.misses
        Stream.open(engine(model), f"a text for {family}").take(2)
        assert model.text_cache.misses == before + levels, family


def test_the_text_cache_is_bounded_and_forgets_the_least_recently_used() -> None:
    entry = TextEntry({m: [(torch.zeros(4), torch.zeros(4))] for m in ("video", "audio")})  # 64 bytes
    cache = TextCache(budget_bytes=128)
    for name in ("a", "b", "a", "c"):
        cache.get((name, None), lambda: entry)
    assert (cache.bytes_held, len(cache), cache.hits, cache.misses) == (128, 2, 1, 3)
    cache.get(("a", None), lambda: entry)
    assert cache.hits == 2, "a was used after b, so b went"
    alone = TextCache(budget_bytes=0)
    assert alone.get(("a", None), lambda: entry) is entry


def test_prompts_are_equal_by_content_and_padding_is_dropped() -> None:
    a, b = hashed_prompt("x", 4, 6), hashed_prompt("x", 4, 6)
    assert a.key == b.key != hashed_prompt("y", 4, 6).key
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1])
    padded = Prompt.without_padding("x", a.video, a.audio, mask)
    assert padded.video.shape == (6, 4)
    with pytest.raises(StreamError, match=r"expected \[tokens, channels\], not empty"):
        Prompt.without_padding("x", a.video, a.audio, torch.zeros(8))


def test_embeddings_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="video text embeddings have 5 channels but the model reads 24"):
        Stream.open(engine(backbone("ltx-2.0")), hashed_prompt("x", 5, 24))


def test_the_transformer_refuses_to_run_outside_of_its_backbone() -> None:
    model = backbone()
    x = torch.zeros(1, 12, 16), torch.zeros(1, 16, 8)
    with pytest.raises(RuntimeError, match=r"outside of Backbone\.forward"):
        model._call(*x, torch.zeros(1, 1, 24), torch.zeros(1, 1, 24), 0.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_streams_stay_finite_and_near_float32(family: str, dtype: torch.dtype) -> None:
    """One chunk in half precision against float32: rounding only (random weights, relative to the latents' spread)."""
    exact = Stream.open(engine(backbone(family)), "a ball", seed=1)
    transformer = random_transformer(seed=1, **architecture(family)).to(dtype)
    for name, parameter in transformer.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.data.mul_(2.0)
    half = Stream.open(engine(Backbone(transformer, backbone(family).geometry)), "a ball", seed=1)
    assert {s.element_bytes for s in half.engine.specs.values()} == {2}
    for a, b in zip(exact.take(3), half.take(3), strict=True):
        assert torch.isfinite(b.video).all()
        assert ((a.video - b.video).norm() / a.video.norm()).item() < 0.1
    assert half.engine.pool.storage[TYPES[0]].dtype is dtype
