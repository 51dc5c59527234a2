"""AdaStat and the repair ladder: exact statistics, an untouched publication, a reference that does not follow drift."""

import numpy as np
import pytest
import torch

from cache.books import CacheConfig
from cache.drift import ChannelStatistics, Correction, DriftConfig, DriftControl, DriftVerdict, Reference, Rung
from cache.scenes import SceneConfig
from errors import ConfigError
from kernels.adastat import adastat, channel_statistics
from streams.stream import Stream
from tests.builders import backbone, engine


def seen(mean: float, std: float = 1.0, channels: int = 5) -> dict[str, ChannelStatistics]:
    return {"video": ChannelStatistics(np.full(channels, mean), np.full(channels, std))}


def control(**changes: object) -> tuple[DriftControl, dict[str, Reference]]:
    made = DriftControl(DriftConfig(**{"warmup_chunks": 2, "patience": 2, **changes}))
    reference: dict[str, Reference] = {}
    made.judge(reference, seen(0.0))
    made.judge(reference, seen(0.0))
    return made, reference


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_corrected_copy_has_exactly_the_blended_statistics(strength: float) -> None:
    x = torch.randn(1000, 7) * torch.linspace(0.1, 5, 7) + 1000.0  # a large offset against a small spread
    mean, std = channel_statistics(x)
    reference_mean, reference_std = torch.randn(7).double() + 990, torch.rand(7).double() + 0.5
    got_mean, got_std = channel_statistics(adastat(x.double(), reference_mean, reference_std, strength))
    torch.testing.assert_close(got_mean, (1 - strength) * mean + strength * reference_mean, atol=1e-9, rtol=1e-12)
    torch.testing.assert_close(got_std, (1 - strength) * std + strength * reference_std, atol=1e-9, rtol=1e-9)


def test_a_constant_channel_gives_no_nan_and_only_its_mean_is_blended() -> None:
    x = torch.randn(63, 3)
    x[:, 1] = 4.0
    got = adastat(x, torch.zeros(3).double(), torch.ones(3).double(), 0.5)
    assert torch.isfinite(got).all()
    assert torch.equal(got[:, 1], torch.full((63,), 2.0))


def test_adastat_equals_the_formula_of_the_paper_and_leaves_its_input_alone() -> None:
    x = torch.randn(100, 4)
    before = x.clone()
    mean, std, s = torch.randn(4).double(), torch.rand(4).double(), 0.4
    own_mean, own_std = x.double().mean(0), x.double().std(0, correction=0)
    expected = x + s * (std * (x - own_mean) / own_std + mean - x)
    torch.testing.assert_close(adastat(x, mean, std, s), expected.float(), atol=1e-6, rtol=1e-6)
    assert torch.equal(x, before)


def test_nothing_is_corrected_while_the_reference_is_learned_or_in_the_chunk_of_a_cut() -> None:
    made, reference = control()
    assert made.judge(reference, seen(0.1)).corrections
    made.restart()
    assert not made.judge(reference, seen(0.1)).corrections
    assert made.judge(reference, seen(0.1)).corrections
    made.restart()
    fresh: dict[str, Reference] = {}
    assert not made.judge(fresh, seen(3.0)).corrections
    assert not made.judge(fresh, seen(5.0)).corrections
    assert fresh["video"].mean == pytest.approx(4.0)


def test_the_reference_moves_on_low_drift_only_and_slowly() -> None:
    made, reference = control(ema_rate=0.1, reference_threshold=3.0)
    made.judge(reference, seen(0.2))
    assert reference["video"].mean == pytest.approx(0.02)
    made.judge(reference, seen(0.6))
    assert reference["video"].mean == pytest.approx(0.02)


def test_drift_is_counted_in_what_is_usual_in_the_scene() -> None:
    """The same shift means less where the chunks that the reference was learned from differ more."""
    calm, lively = (Reference.first(seen(0.0)["video"]) for _ in range(2))
    for i in range(1, 9):
        calm.learn(seen(0.0)["video"])
        lively.learn(seen(float(i % 2))["video"])
    assert calm.score(seen(1.0)["video"]) == pytest.approx(10.0)  # in the least that is assumed, a tenth of a spread
    assert 0.5 < lively.score(seen(1.0)["video"]) < 1.5


def test_the_ladder_climbs_one_rung_at_a_time_and_is_undone_when_drift_falls() -> None:
    made, reference = control(ema_rate=0.0)
    rungs = [made.judge(reference, seen(2.0)) for _ in range(10)]
    assert [v.rung for v in rungs] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert "drift 20.000: none to stronger_correction" in rungs[1].changed
    assert rungs[0].corrections["video"].strength == 0.5
    assert rungs[1].corrections["video"].strength == 0.8
    assert [made.judge(reference, seen(0.0)).rung for _ in range(9)] == [4, 3, 3, 2, 2, 1, 1, 0, 0]


def test_between_the_thresholds_the_ladder_holds() -> None:
    made, reference = control(ema_rate=0.0)
    for _ in range(2):
        made.judge(reference, seen(2.0))
    assert {made.judge(reference, seen(0.2)).rung for _ in range(10)} == {Rung.STRONGER_CORRECTION}


def test_the_score_of_a_constant_channel_is_finite() -> None:
    reference = Reference(np.zeros(3), np.zeros(3), 2)
    assert np.isfinite(reference.score(ChannelStatistics(np.ones(3), np.zeros(3))))


def test_published_latents_are_bit_identical_without_correction_until_the_next_chunk() -> None:
    """The correction goes to the copy in the cache: the chunk that is corrected is published as if it were not."""
    strong = DriftConfig(strength={"video": 0.9, "audio": 0.9}, warmup_chunks=3)
    off = DriftConfig(strength={"video": 0.0, "audio": 0.0}, warmup_chunks=3)
    takes = [Stream.open(engine(cache=CacheConfig(drift=d)), "a ball", seed=4).take(6) for d in (strong, off)]
    equal = [torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio) for a, b in zip(*takes, strict=True)]
    assert equal == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]  # chunk 3 is the first corrected, chunk 4 the first to see it


def test_published_latents_are_never_written_after_publication() -> None:
    stream = Stream.open(engine(cache=CacheConfig(drift=DriftConfig(warmup_chunks=2))), "a ball", seed=4)
    chunks = stream.take(3)
    before = [(c.video.clone(), c.audio.clone()) for c in chunks]
    stream.change_prompt("a cube", "recache")
    stream.cut("kitchen", "a kitchen")
    stream.take(8)
    stream.return_to("opening")
    stream.take(3)
    for chunk, (video, audio) in zip(chunks, before, strict=True):
        assert torch.equal(chunk.video, video)
        assert torch.equal(chunk.audio, audio)


def test_the_committed_copy_has_the_blended_statistics_in_a_real_stream() -> None:
    config = CacheConfig(drift=DriftConfig(strength={"video": 0.5, "audio": 0.25}, warmup_chunks=2, ema_rate=0.0))
    stream = Stream.open(engine(backbone(), cache=config), "a ball", seed=4)
    stream.take(2)
    reference = stream.session.manager.scenes.current.reference
    chunk = stream.next()
    committed = stream.session.retained[2]
    for modality, strength, published, copy in (
        ("video", 0.5, chunk.video, committed.video),
        ("audio", 0.25, chunk.audio, committed.audio),
    ):
        (mean, std), (got_mean, got_std) = channel_statistics(published), channel_statistics(copy)
        target = reference[modality]
        expected = (1 - strength) * mean + strength * torch.from_numpy(target.mean)
        torch.testing.assert_close(got_mean, expected, atol=1e-6, rtol=0)
        expected = (1 - strength) * std + strength * torch.from_numpy(target.std)
        torch.testing.assert_close(got_std, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("rung", "recent"), [(Rung.DROP_DRIFTED_RECENT, [11, 14]), (Rung.REESTABLISH_SCENE, [14])])
def test_high_rungs_drop_drifted_recent_chunks_and_keep_sink_and_anchors(rung: Rung, recent: list[int]) -> None:
    """Chunk 11 did not drift, 12 and 13 did; the newest always stays, or the stream would jump."""
    calm = DriftConfig(reference_threshold=9.0, raise_threshold=10.0, lower_threshold=9.5)
    made = engine(cache=CacheConfig(scenes=SceneConfig(anchor_every=3), drift=calm))
    stream = Stream.open(made, "a ball", seed=1)
    stream.take(12)
    manager = stream.session.manager

    def drifted(reference: object, statistics: object) -> DriftVerdict:
        manager.drift.rung = rung
        return DriftVerdict(15.0, {}, rung)

    manager.drift.judge = drifted  # type: ignore[method-assign]
    stream.take(3)
    made.check_integrity()
    held = stream.keep_set()["video_self"]
    assert held["recent"] == recent
    assert held["scene_sink"] == [0]
    assert held["scene_anchor"] == manager.scenes.current.anchors
    assert any("drift 15.000 on rung" in d.reason for d in stream.decisions if d.action == "evict")


def test_an_aborted_chunk_moves_neither_reference_nor_ladder() -> None:
    stream = Stream.open(engine(cache=CacheConfig(drift=DriftConfig(warmup_chunks=2))), "a ball", seed=1)
    stream.take(3)
    manager = stream.session.manager
    before = manager.scenes.current.reference["video"].mean.copy()
    manager.begin()
    manager.judge({m: ChannelStatistics(s.mean + 0.01, s.std) for m, s in manager.scenes.current.reference.items()})
    assert not np.array_equal(manager.scenes.current.reference["video"].mean, before)
    manager.abort()
    assert np.array_equal(manager.scenes.current.reference["video"].mean, before)
    manager.check_integrity()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"strength\[video\] is 1.5; expected a blend between 0 and 1"):
        DriftConfig(strength={"video": 1.5})
    with pytest.raises(ConfigError, match="strength names 'vidoe'; expected video or audio"):
        DriftConfig(strength={"vidoe": 0.5})
    with pytest.raises(ConfigError, match="or the ladder would swing"):
        DriftConfig(raise_threshold=0.3, lower_threshold=0.4)


def test_a_correction_is_addressed_to_one_modality() -> None:
    made, reference = control(strength={"video": 0.0})
    assert made.judge(reference, seen(0.1)).corrections == {}
    assert isinstance(control()[0].judge(reference, seen(0.1)).corrections["video"], Correction)
