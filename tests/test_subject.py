"""The subject anchor's harvest: which tokens a mask chooses, which chunks are looked at, and what replaces what."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.drift import Rung
from cache.keep_set import Budgets, RoleBudget
from cache.policies import SceneMemory
from cache.spec import TYPES, AttentionType, Modality
from errors import ConfigError, StreamClosed, StreamError
from models.latents import pack_video
from models.segmenter import Finding
from models.shapes import ChunkGeometry
from streams.stream import Stream
from streams.subject import SubjectKeeper, audio_token_mask, time_steps, video_token_mask
from tests.builders import backbone, engine, visible

VIDEO_KEYED = [t for t in TYPES if t.keyed_by is Modality.VIDEO]


class Script:
    """A segmenter that answers as it is told: a score, or an error; the mask is a rectangle of pixels."""

    def __init__(self, score: float, rows: slice = slice(0, 32), columns: slice = slice(32, 96)) -> None:
        self.answer: float | list[float] | Exception = score
        self.rows, self.columns = rows, columns
        self.asked: list[tuple[int, str]] = []

    def score(self, frames: torch.Tensor, description: str) -> Finding:
        self.asked.append((len(frames), description))
        if isinstance(self.answer, Exception):
            raise self.answer
        masks = torch.zeros(frames.shape[:3])
        masks[:, self.rows, self.columns] = 1.0
        scores = self.answer if isinstance(self.answer, list) else [self.answer] * len(frames)
        return Finding(torch.tensor(scores), masks)


def opened(chunks: int = 3) -> Stream:
    stream = Stream.open(engine(), "a red ball", seed=1)
    stream.take(chunks)
    return stream


def frames_of(stream: Stream) -> torch.Tensor:
    geometry = stream.engine.backbone.geometry
    height, width = (side * geometry.spatial_scale for side in (geometry.height, geometry.width))
    return torch.zeros(geometry.frames * geometry.temporal_scale, height, width, 3, dtype=torch.uint8)


def subject_of(stream: Stream) -> dict[AttentionType, tuple[int, float]]:
    ledgers = stream.session.manager.ledgers
    return {t: (book.subject.chunk, book.subject.score) for t, book in ledgers.items() if book.subject is not None}


# -- masks to tokens


def slow_video_token_mask(
    masks: torch.Tensor, at: list[int], count: int, geometry: ChunkGeometry, coverage: float
) -> list[bool]:
    """Frame by frame and latent by latent; which latents make a token is asked of ``pack_video`` itself."""
    scale = geometry.spatial_scale
    shape = (1, geometry.frames, geometry.height, geometry.width)
    numbers = torch.arange(geometry.frames * geometry.height * geometry.width, dtype=torch.float32).reshape(shape)
    decoded = [f for f in range(geometry.frames) for _ in range(geometry.temporal_scale)][-count:]
    chosen = []
    for latents in pack_video(numbers, geometry.patch, geometry.patch_t).long().tolist():
        seen = []
        for latent in latents:
            frame, cell = divmod(latent, geometry.height * geometry.width)
            row, column = divmod(cell, geometry.width)
            for look, index in enumerate(at):
                if decoded[index] == frame:
                    pixels = masks[look, row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
                    seen.append(pixels.double().mean())
        chosen.append(bool(seen) and bool(torch.stack(seen).mean() >= coverage))
    return chosen


@st.composite
def geometries(draw: st.DrawFn) -> ChunkGeometry:
    patch, patch_t = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    frames = patch_t * draw(st.integers(1, 3))
    temporal = draw(st.sampled_from([1, 2, 4]))
    return ChunkGeometry(
        frames=frames,
        height=patch * draw(st.integers(1, 3)),
        width=patch * draw(st.integers(1, 3)),
        audio_latents=frames * temporal,
        fps=Fraction(25),
        temporal_scale=temporal,
        spatial_scale=draw(st.sampled_from([1, 4])),
        patch=patch,
        patch_t=patch_t,
        causal_offset=draw(st.integers(1, temporal)),
    )


@settings(max_examples=150)
@given(geometries(), st.data())
def test_a_token_is_chosen_if_the_subject_covers_enough_of_its_pixels_and_its_time(
    geometry: ChunkGeometry, data: st.DataObject
) -> None:
    full = geometry.frames * geometry.temporal_scale
    lead = full - geometry.temporal_scale + geometry.causal_offset
    count = data.draw(st.sampled_from([full, lead]))
    at = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6, unique=True))
    size = (len(at), geometry.height * geometry.spatial_scale, geometry.width * geometry.spatial_scale)
    masks = torch.rand(size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    coverage = data.draw(st.sampled_from([0.3, 0.45, 0.5, 0.6]))
    fast = video_token_mask(masks, time_steps(at, count, geometry), geometry, coverage)
    assert fast.tolist() == slow_video_token_mask(masks, at, count, geometry, coverage)


def test_masks_or_frames_of_another_size_are_refused() -> None:
    geometry = backbone().geometry
    with pytest.raises(StreamError, match=r"masks have shape \(1, 8, 8\); expected \(1, 64, 96\)"):
        video_token_mask(torch.zeros(1, 8, 8), torch.tensor([0]), geometry, 0.5)
    with pytest.raises(StreamError, match="the chunk has 15 frames; expected 16, or 9 where a stream begins"):
        time_steps([0], 15, geometry)


def test_sound_is_chosen_by_the_time_in_which_the_subject_is_seen() -> None:
    geometry = backbone().geometry  # 2 time steps, 16 audio tokens
    assert audio_token_mask(torch.tensor([1]), geometry).nonzero()[:, 0].tolist() == list(range(8, 16))
    assert audio_token_mask(torch.tensor([0, 1]), geometry).all()


# -- the anchor


def test_the_anchor_holds_the_keys_and_values_of_the_masked_tokens() -> None:
    stream = opened()
    keeper = SubjectKeeper(Script(0.8), every=1, looks=2)
    made, session = stream.engine, stream.session
    tokens = [1, 2, 7, 8]  # the right two of three columns in the upper of two rows, in both latent frames
    wanted = {}
    for t in VIDEO_KEYED:
        page = session.page(t, session.manager.ledgers[t].entries[2].place)
        wanted[t] = made.pool.storage[t][:, :, page, tokens].clone()
    assert keeper.consider(stream, 2, frames_of(stream), "red ball")
    for t in VIDEO_KEYED:
        assert session.subject_tokens[t].tolist() == tokens
        anchor = made.pool.storage[t][:, :, session.page(t, 0), -len(tokens) :]
        torch.testing.assert_close(anchor[:, 1], wanted[t][:, 1], rtol=0, atol=0)
        # The keys were rotated to the anchor's slot, which keeps their length.
        torch.testing.assert_close(anchor[:, 0].norm(dim=-1), wanted[t][:, 0].norm(dim=-1))
        assert (2, session.manager.ledgers[t].subject.slot, tokens) in visible(session)[t]
    made.check_integrity()
    stream.take(8)
    assert stream.keep_set()["video_self"]["subject_anchor"] == [2]
    made.check_integrity()


def test_only_frames_that_show_the_subject_give_tokens() -> None:
    stream, script = opened(), Script(0.0)
    script.answer = [0.2, 0.9]
    assert SubjectKeeper(script, every=1, looks=2).consider(stream, 2, frames_of(stream), "red ball")
    assert stream.session.subject_tokens[AttentionType.VIDEO_SELF].tolist() == [7, 8]
    assert subject_of(stream)[AttentionType.VIDEO_SELF] == (2, pytest.approx(0.9))


def test_sound_is_left_out_unless_asked_for() -> None:
    deaf, hearing = opened(), opened()
    assert SubjectKeeper(Script(0.8), every=1).consider(deaf, 2, frames_of(deaf), "red ball")
    assert set(subject_of(deaf)) == set(VIDEO_KEYED)
    script = Script(0.0)
    script.answer = [0.2, 0.9]
    keeper = SubjectKeeper(script, every=1, looks=2, heard="while_seen")
    assert keeper.consider(hearing, 2, frames_of(hearing), "red ball")
    assert set(subject_of(hearing)) == set(TYPES)
    assert hearing.session.subject_tokens[AttentionType.AUDIO_SELF].tolist() == list(range(8, 16))
    hearing.engine.check_integrity()
    assert hearing.take(3)


def test_a_streams_first_chunk_can_be_harvested_although_it_has_fewer_frames() -> None:
    stream = opened(1)
    assert SubjectKeeper(Script(0.8), every=1).consider(stream, 0, frames_of(stream)[:9], "red ball")
    assert subject_of(stream)[AttentionType.VIDEO_SELF][0] == 0


# -- which chunks are looked at, and what replaces what


def test_every_nth_chunk_is_looked_at_and_every_one_while_a_fresh_anchor_is_wanted() -> None:
    stream, script = opened(0), Script(0.1)
    keeper = SubjectKeeper(script, every=3, looks=4)
    looked = []
    for chunk in range(12):
        stream.next()
        if chunk == 7:
            stream.session.manager.drift.rung = Rung.REFRESH_SUBJECT
        before = len(script.asked)
        assert not keeper.consider(stream, chunk, frames_of(stream), "red ball")
        looked += [chunk] if len(script.asked) > before else []
        stream.session.manager.drift.rung = stream.session.manager.drift.rung if chunk < 8 else Rung.NONE
    assert looked == [0, 3, 6, 7, 8, 9]
    assert script.asked[0] == (4, "red ball")
    assert keeper.statistics().looked == 6


def test_a_worse_score_never_replaces_the_anchor() -> None:
    stream, script = opened(), Script(0.8)
    keeper = SubjectKeeper(script, every=1, threshold=0.5)
    outcomes = []
    for answer in (0.8, 0.7, 0.8, 0.4, 0.9):
        script.answer = answer
        outcomes.append(keeper.consider(stream, stream.next().index, frames_of(stream), "red ball"))
    assert outcomes == [True, False, False, False, True]
    assert subject_of(stream)[AttentionType.VIDEO_SELF] == (7, pytest.approx(0.9))
    assert keeper.statistics().taken == 2
    assert "best score 0.400 < 0.5" in [d.reason for d in stream.decisions.about(6)]


def test_a_repair_takes_one_fresh_anchor_at_any_good_score_and_then_only_better_ones() -> None:
    stream, script = opened(), Script(0.9)
    keeper = SubjectKeeper(script, every=1)
    assert keeper.consider(stream, 2, frames_of(stream), "red ball")

    def ask(answer: float, rung: Rung) -> bool:
        chunk = stream.next().index
        stream.session.manager.drift.rung = rung
        script.answer = answer
        return keeper.consider(stream, chunk, frames_of(stream), "red ball")

    fresh = Rung.REFRESH_SUBJECT
    assert [ask(a, fresh) for a in (0.3, 0.7, 0.6, 0.8)] == [False, True, False, True]
    assert [ask(a, Rung.NONE) for a in (0.7, 0.85)] == [False, True]
    assert ask(0.6, fresh)


def test_a_chunk_that_is_no_longer_kept_is_not_looked_at() -> None:
    stream, script = opened(12), Script(0.9)
    kept = stream.session.manager.ledgers[AttentionType.VIDEO_SELF].entries
    gone = next(c for c in range(12) if c not in kept)
    assert not SubjectKeeper(script, every=1).consider(stream, gone, frames_of(stream), "red ball")
    assert not script.asked


def test_without_a_budget_for_an_anchor_nothing_is_looked_at() -> None:
    none = SceneMemory(Budgets.uniform(RoleBudget(subject_anchor=0, scene_sink=1, recent=4)))
    stream, script = Stream.open(engine(policy=none), "a ball"), Script(0.9)
    stream.take(2)
    assert not SubjectKeeper(script, every=1).consider(stream, 1, frames_of(stream), "red ball")
    assert not script.asked


def test_a_subject_too_small_for_a_token_leaves_the_stream_as_it_was() -> None:
    stream = opened()
    keeper = SubjectKeeper(Script(0.9, slice(0, 8), slice(0, 8)), every=1)
    assert not keeper.consider(stream, 2, frames_of(stream), "red ball")
    assert not subject_of(stream)
    assert stream.decisions.about(2)[-1].reason == "the subject fills 30% of no token"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda s: setattr(s, "answer", RuntimeError("CUDA out of memory")),
        lambda s: setattr(s, "answer", StreamError("the description is empty")),
        lambda s: setattr(s, "answer", [0.9, 0.9, 0.9]),
    ],
    ids=["out of memory", "refusal", "wrong shape"],
)
def test_a_segmenter_that_fails_is_reported_and_the_stream_goes_on(break_it: Callable[[Script], None]) -> None:
    stream, script = opened(), Script(0.9)
    break_it(script)
    keeper = SubjectKeeper(script, every=1)
    assert not keeper.consider(stream, 2, frames_of(stream), "red ball")
    statistics = keeper.statistics()
    assert (statistics.looked, statistics.taken, statistics.failures) == (1, 0, 1)
    assert statistics.last_failure.startswith(f"chunk 2 of {stream.session.id}: ")
    assert stream.decisions.about(2)[-1].reason.startswith("the segmenter failed: ")
    assert stream.take(2)
    stream.engine.check_integrity()


def test_what_the_stream_raises_and_frames_of_another_model_are_not_hidden() -> None:
    stream = opened()
    keeper = SubjectKeeper(Script(0.9), every=1)
    with pytest.raises(StreamError, match="the chunk has 3 frames"):
        keeper.consider(stream, 2, frames_of(stream)[:3], "red ball")
    frames = frames_of(stream)
    stream.close()
    with pytest.raises(StreamClosed):
        keeper.consider(stream, 2, frames, "red ball")


def test_a_keeper_keeps_no_stream_alive() -> None:
    stream, keeper = opened(), SubjectKeeper(Script(0.9), every=1)
    stream.session.manager.drift.rung = Rung.REFRESH_SUBJECT
    assert keeper.consider(stream, 2, frames_of(stream), "red ball")
    assert len(keeper._refreshed) == 1
    stream.close()
    del stream
    assert len(keeper._refreshed) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": 0}, "every is 0; expected at least 1"),
        ({"looks": 0}, "looks is 0; expected at least 1"),
        ({"threshold": 1.5}, "threshold is 1.5; expected more than 0 and at most 1"),
        ({"coverage": 0.0}, "coverage is 0.0; expected more than 0"),
        ({"heard": "all"}, "heard is 'all'; expected 'nothing' or 'while_seen'"),
    ],
)
def test_a_bad_setting_is_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SubjectKeeper(Script(0.5), **wrong)
