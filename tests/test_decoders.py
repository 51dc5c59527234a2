"""Streaming decoders: the same frames and samples in any chunks, none lost, none twice, no border."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from errors import CheckpointError, ConfigError, SnapshotMismatch, StreamError
from models.decoders import Codecs, Media, StreamDecoder, Tail, advance
from models.frame_codecs import CausalVideo
from models.sound_codecs import FoldedSound, MelSound
from tests.small_codecs import mel_vae, released, tokens, toy, video_vae, vocoder, waveform_codec

# Each with as much of the past and the future as its small decoders see.
PAIRS: dict[str, Callable[[], Codecs]] = {
    "toy": lambda: toy(past=9, ahead=10, fade=40),
    "released": released,
    "causal": lambda: released(causal=True),
    "wide": lambda: released(wide=True),
}


@dataclass(frozen=True)
class Ruler:
    """A decoder whose outputs are exact: output k of step i is the sum of latents i ± reach, and k."""

    reach: int
    past: int
    ahead: int
    fade: int
    ratio: int
    lost: int
    latent_shape: tuple[int, ...] = (1, 1)

    @property
    def output(self) -> torch.Tensor:
        return torch.empty(0, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(1, 1, 2 * self.reach + 1)
        sums = torch.nn.functional.conv1d(latents[:, :, 0][None], kernel, padding=self.reach)[0, 0]
        return (sums[:, None] * self.ratio + torch.arange(self.ratio)).reshape(-1, 1)[self.lost :]


@st.composite
def rulers(draw: st.DrawFn) -> Ruler:
    reach, ratio = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    lost = draw(st.integers(0, ratio - 1))
    past = reach + draw(st.integers(1 if lost and not reach else 0, 2))
    ahead = reach + draw(st.integers(0, 2))
    # What is faded out sees one step less than what was held back for.
    return Ruler(reach, past, ahead, draw(st.integers(0, ratio if ahead > reach else 0)), ratio, lost)


def play(codecs: Codecs, video: torch.Tensor, audio: torch.Tensor, cuts: Sequence[tuple[int, int]]) -> list[Media]:
    """Decode chunk by chunk; ``cuts`` are tokens per chunk."""
    decoder = StreamDecoder(codecs)
    sizes = [list(part) for part in zip(*cuts, strict=True)]
    parts = [decoder.push(v, a) for v, a in zip(video.split(sizes[0]), audio.split(sizes[1]), strict=True)]
    return [*parts, decoder.flush()]


def joined(parts: Sequence[Media]) -> Media:
    return Media(torch.cat([p.frames for p in parts]), torch.cat([p.samples for p in parts]))


def whole(codecs: Codecs, video: torch.Tensor, audio: torch.Tensor) -> Media:
    with torch.no_grad():
        v, a = codecs.unpack(video, audio)
        return Media(codecs.frames.decode(v), codecs.sound.decode(a))


@given(rulers(), st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_every_output_comes_once_and_in_order_for_any_chunks(codec: Ruler, chunks: list[int]) -> None:
    """With as much past and future as the decoder sees, to the last bit."""
    stream = torch.randint(-9, 9, (1, sum(chunks), 1), generator=torch.Generator().manual_seed(1)).float()
    tail, outputs = Tail.empty(codec), []
    for latents in stream.split(chunks, dim=1):
        tail, made = advance(codec, tail, latents)
        outputs.append(made)
        held = tail.latents.shape[1] - tail.context
        assert tail.context <= codec.past
        assert held <= codec.ahead
        assert len(tail.border) <= codec.fade
    tail, made = advance(codec, tail, None)
    outputs.append(made)
    assert torch.equal(torch.cat(outputs), codec.decode(stream))
    assert not len(advance(codec, tail, None)[1])


@given(rulers(), st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 3))
def test_less_context_than_a_decoder_sees_still_gives_as_many_outputs(
    codec: Ruler, chunks: list[int], past: int, ahead: int
) -> None:
    """Also if the stream is flushed on the way (0) and goes on."""
    codec = Ruler(3, past + (codec.lost > 0), ahead, codec.ratio if ahead else 0, codec.ratio, codec.lost)
    tail, count = Tail.empty(codec), 0
    for steps in [*chunks, 0]:
        tail, made = advance(codec, tail, torch.zeros(1, steps, 1) if steps else None)
        count += len(made)
    assert count == (len(codec.decode(torch.zeros(1, sum(chunks), 1))) if sum(chunks) else 0)


def test_one_decoding_gives_way_to_the_next_by_a_raised_cosine() -> None:
    """Latent 5 is the sum of 4 latents as long as what follows is not known, and of 7 then; 4 outputs each."""
    codec = Ruler(reach=3, past=3, ahead=1, fade=4, ratio=4, lost=0)
    tail, _ = advance(codec, Tail.empty(codec), torch.ones(1, 6, 1))
    _, after = advance(codec, tail, torch.ones(1, 6, 1))
    shares = [0.038060, 0.308658, 0.691342, 0.961940]
    expected = [16 + 12 * share + k for k, share in enumerate(shares)]
    assert after[:4, 0].tolist() == pytest.approx(expected, abs=1e-4)
    assert after[4:8, 0].tolist() == [28, 29, 30, 31]


@pytest.mark.parametrize("name", PAIRS)
@examples(max_examples=8)
@given(data=st.data())
def test_chunks_add_up_to_the_whole_stream(name: str, data: st.DataObject) -> None:
    """As many frames and samples as decoding everything at once, and the same ones to rounding."""
    codecs = PAIRS[name]()
    g = codecs.geometry
    steps = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20)), min_size=1, max_size=4))
    frames, latents = g.patch_t * sum(n for n, _ in steps), sum(n for _, n in steps)
    video, audio = tokens(codecs, frames, latents)
    per_step = len(video) * g.patch_t // frames
    made = joined(play(codecs, video, audio, [(n * per_step, a) for n, a in steps]))
    expected = whole(codecs, video, audio)
    assert made.frames.shape == expected.frames.shape
    assert made.samples.shape == expected.samples.shape
    assert made.frames.dtype == torch.uint8
    assert made.samples.dtype == torch.float32
    # Rounding may differ with the size of the window, and move a pixel over the edge of a level.
    assert (made.frames.int() - expected.frames.int()).abs().max() <= 1
    spread = float(expected.samples.std()) if latents > 1 else 1.0
    assert (made.samples - expected.samples).abs().max() <= 1e-3 * spread


def test_frames_that_stand_alone_are_exactly_those_of_the_whole_stream() -> None:
    codecs = toy()
    video, audio = tokens(codecs, 12, 48)
    expected = whole(codecs, video, audio).frames
    for chunk in (1, 2, 3):
        made = joined(play(codecs, video, audio, [(chunk * 2, 8 * chunk)] * (6 // chunk)))
        assert torch.equal(made.frames, expected)
        assert float(expected.float().std()) > 10


def test_the_first_latent_frame_of_a_stream_is_one_frame_and_every_other_eight() -> None:
    codecs = released(causal=True)
    video, audio = tokens(codecs, 4, 4)
    counts = [len(part.frames) for part in play(codecs, video, audio, [(6, 1), (12, 1), (6, 2)])]
    assert counts == [1, 16, 8, 0]


def test_nothing_is_held_back_where_nothing_is_looked_ahead_at() -> None:
    video, audio = tokens(toy(), 2, 8)
    first, last = play(toy(), video, audio, [(len(video), 8)])
    assert (len(first.frames), len(first.samples)) == (2, 1 * 160)
    assert (len(last.frames), len(last.samples)) == (0, 7 * 160)


def test_the_sound_does_not_click_where_chunks_meet() -> None:
    """With a third of the future that the decoder sees; without past, future and fading it does.

    A random decoder hums with every latent. What is heard besides is how a sample differs from the one a latent before.
    """
    codecs = toy()
    video, audio = tokens(codecs, 2, 64, seed=5, smoothness=0.995)
    hop = codecs.sound.ratio

    def steps(codecs: Codecs) -> tuple[float, float]:
        """The largest step from sample to sample where chunks meet, and elsewhere."""
        decoder = StreamDecoder(codecs)
        parts = [decoder.push(video, chunk).samples for chunk in audio.split(8)]
        borders = torch.tensor([len(p) for p in parts]).cumsum(0)[:-1]
        sound = torch.cat([*parts, decoder.flush().samples])[:, 0]
        change = (sound[hop:] - sound[:-hop]).diff().abs()
        at_border = torch.zeros(len(change), dtype=torch.bool)
        for border in borders:
            at_border[border - hop - 1 : border - hop + 40] = True
        return float(change[at_border].max()), float(
            change[12 * hop : -12 * hop][~at_border[12 * hop : -12 * hop]].max()
        )

    with_care, elsewhere = steps(toy(past=9, ahead=3, fade=40))
    without, _ = steps(toy(past=0, ahead=0, fade=0))
    assert with_care <= elsewhere < without / 2


def test_a_border_in_the_picture_is_blended() -> None:
    """The largest change between two frames at a border is not larger than what the video itself does."""
    codecs = released(past=3, ahead=2)
    video, audio = tokens(codecs, 12, 12)

    def jump(codecs: Codecs) -> float:
        parts = play(codecs, video, audio, [(12, 2)] * 6)
        borders = torch.tensor([len(p.frames) for p in parts if len(p.frames)]).cumsum(0)[:-1] - 1
        frames = joined(parts).frames.float()
        return float(frames.diff(dim=0).square().mean((1, 2, 3)).sqrt()[borders].max())

    natural = whole(codecs, video, audio).frames.float().diff(dim=0).square().mean((1, 2, 3)).sqrt().max()
    hard = Codecs(codecs.geometry, CausalVideo(video_vae(), 2, 3, 3, 0, 0), codecs.sound)
    assert jump(codecs) <= natural < jump(hard)


@pytest.mark.parametrize("name", ["toy", "released"])
def test_a_resumed_and_a_forked_decoder_go_on_bit_for_bit(name: str) -> None:
    codecs = PAIRS[name]()
    video, audio = tokens(codecs, 6, 24)
    halves = list(zip(video.split(len(video) // 3), audio.split(8), strict=True))
    decoder = StreamDecoder(codecs)
    decoder.push(*halves[0])
    resumed, forked = StreamDecoder.resume(codecs, decoder.state()), decoder.fork()
    forked.push(*halves[2])
    for half in halves[1:]:
        expected, made = decoder.push(*half), resumed.push(*half)
        assert torch.equal(expected.frames, made.frames)
        assert torch.equal(expected.samples, made.samples)
    assert torch.equal(decoder.flush().samples, resumed.flush().samples)


def test_a_stream_keeps_a_bounded_state_of_plain_tensors() -> None:
    codecs = toy()
    video, audio = tokens(codecs, 2, 8)
    decoder, sizes = StreamDecoder(codecs), []
    for _ in range(6):
        decoder.push(video, audio)
        sizes.append(sum(tensor.nbytes for tensor in decoder.state().values()))
    assert sizes[2:] == [sizes[2]] * 4
    # Frames that stand alone need nothing of those before.
    assert set(decoder.state()) == {"video.context", "audio.latents", "audio.context", "audio.border"}


def test_a_state_of_other_codecs_is_refused() -> None:
    decoder = StreamDecoder(toy())
    decoder.push(*tokens(toy(), 2, 8))
    state = decoder.state()
    with pytest.raises(SnapshotMismatch, match="audio latents have shape"):
        StreamDecoder.resume(released(), state)
    with pytest.raises(SnapshotMismatch, match="holds -1 back"):
        StreamDecoder.resume(toy(), {k: v for k, v in state.items() if k != "audio.latents"})
    with pytest.raises(SnapshotMismatch, match="these codecs keep 9, 7 and 40 at most"):
        StreamDecoder.resume(toy(), {**state, "audio.context": torch.tensor([-1])})


def test_tokens_of_another_model_change_nothing() -> None:
    codecs = toy()
    video, audio = tokens(codecs, 2, 8)
    decoder = StreamDecoder(codecs)
    before = decoder.state()
    for wrong in ((video[:, :3], audio), (video[:1], audio), (video, audio[:, :3])):
        with pytest.raises(StreamError, match="tokens have shape"):
            decoder.push(*wrong)
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state().items())


def test_more_cannot_be_faded_than_is_held_back() -> None:
    with pytest.raises(ConfigError, match="fade is 8"):
        CausalVideo(video_vae(), 2, 3, past=4, ahead=0, fade=8)
    with pytest.raises(ConfigError, match="fade is 999"):
        FoldedSound(waveform_codec(), fade=999)
    for make in (
        lambda: CausalVideo(video_vae(), 2, 3, past=0),
        lambda: MelSound(mel_vae(), vocoder(), past=0, fade=4),
    ):
        with pytest.raises(ConfigError, match="expected at least 1"):
            make()


def test_decoders_that_do_not_fit_each_other_are_refused() -> None:
    class Foreign:
        config = type("Config", (), {"in_channels": 7, "output_sampling_rate": 800})

    with pytest.raises(CheckpointError, match="reads 7 channels"):
        MelSound.of(mel_vae(), Foreign())
