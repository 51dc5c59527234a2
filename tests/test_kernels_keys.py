"""Triton's kernels that write keys: rotation, relocation, restoring and commit, against the plain-torch ones."""

import pytest
import torch

from kernels import commit as commit_reference
from kernels import commit_triton, rotary_triton
from kernels import relocate as relocate_reference
from kernels import rotary as rotary_reference
from kernels.quantised import (
    LARGEST,
    KeyPages,
    QuantisedKeys,
    QuantisedValues,
    ValuePages,
    empty_keys,
    empty_values,
    quantise_keys,
    quantise_values,
)
from kernels.rotary import RotaryLayout
from tests.kernel_cases import DEVICE, DTYPES, TOLERANCE, draw, near, poisoned

LAYOUTS = (RotaryLayout("interleaved", 3), RotaryLayout("split", 3), RotaryLayout("split", 1))
WIDTH = 42  # 7 pairs a head, or 21


def turns(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of random angles, of which every third is none at all."""
    angle = torch.rand(*shape, generator=torch.Generator().manual_seed(5)) * 6
    angle[..., ::3] = 0
    return angle.cos().to(DEVICE), angle.sin().to(DEVICE)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of infinity times zero
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_keys_are_relocated_in_place_and_nothing_beside_them(dtype: torch.dtype, layout: RotaryLayout) -> None:
    """Strided planes of a pool, 63 tokens; what has no time frequency keeps its bits, infinity and −0 too."""
    cos, sin = turns(WIDTH // 2)
    pool = poisoned(2, 2, 3, 63, WIDTH, dtype=dtype)
    pool[:, 0, 1] = draw(2, 63, WIDTH, dtype=dtype)
    still = 0 if layout.kind == "split" else 1
    pool[0, 0, 1, 0, 0], pool[0, 0, 1, 1, still] = torch.inf, -0.0
    keys = pool[:, 0, 1].clone()
    rotary_triton.relocate(pool[:, 0, 1], cos, sin, layout)
    expected = rotary_reference.rotate(keys, cos, sin, layout)
    moved = torch.isfinite(expected)
    near(pool[:, 0, 1][moved], expected[moved], TOLERANCE[dtype])
    assert pool[0, 0, 1, 0, 0] == torch.inf
    assert torch.signbit(pool[0, 0, 1, 1, still])
    assert pool[:, 1].isnan().all()
    assert pool[:, 0, [0, 2]].isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("tokens", [1, 100])
def test_queries_are_rotated_by_angles_of_their_own(tokens: int, layout: RotaryLayout) -> None:
    x, (cos, sin) = draw(2, tokens, WIDTH), turns(2, tokens, WIDTH // 2)
    near(rotary_triton.rotate(x, cos, sin, layout), rotary_reference.rotate(x, cos, sin, layout), 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codes", LARGEST)
def test_codes_are_restored_at_another_position_in_one_pass(codes: torch.dtype, dtype: torch.dtype) -> None:
    packed, (cos, sin) = quantise_keys(draw(2, 63, WIDTH), codes), turns(WIDTH // 2)
    for layout in LAYOUTS:
        got, expected = poisoned(2, 63, WIDTH, dtype=dtype), poisoned(2, 63, WIDTH)
        rotary_triton.restore(packed, got, cos, sin, layout)
        relocate_reference.restore(packed, expected, cos, sin, layout)
        near(got, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "weighted"), [(LAYOUTS[0], True), (LAYOUTS[1], True), (LAYOUTS[1], False)], ids=str)
def test_commit_writes_only_its_own_pages(dtype: torch.dtype, layout: RotaryLayout, weighted: bool) -> None:
    key, value = draw(2, 5, WIDTH, dtype=dtype), draw(2, 5, WIDTH, dtype=dtype, seed=1)
    weight = draw(WIDTH, dtype=dtype, seed=2) if weighted else None
    cos, sin = turns(2, 5, WIDTH // 2)
    got, expected = poisoned(2, 4, 5, WIDTH, dtype=dtype), poisoned(2, 4, 5, WIDTH)
    commit_triton.write(key, value, weight, 1e-6, cos, sin, layout, got[0], got[1], [3, 0])
    wide = None if weight is None else weight.float()
    commit_reference.write(key.float(), value.float(), wide, 1e-6, cos, sin, layout, expected[0], expected[1], [3, 0])
    near(got[0, [3, 0]], expected[0, [3, 0]], TOLERANCE[dtype])
    assert torch.equal(got[1, [3, 0]].float(), expected[1, [3, 0]])
    assert got[:, [1, 2]].isnan().all()


def pages_of_codes(codes: torch.dtype, tokens: int) -> tuple[QuantisedKeys, QuantisedValues]:
    """Three pages whose scales nobody wrote yet."""
    keys, values = (make(3, tokens, WIDTH, codes, DEVICE) for make in (empty_keys, empty_values))
    for ends in (keys.scale, keys.zero, values.scale):
        ends.fill_(float("nan"))
    return keys, values  # type: ignore[return-value]


@pytest.mark.parametrize("codes", LARGEST)
@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=str)
def test_commit_quantises_where_the_pages_are_codes(layout: RotaryLayout, codes: torch.dtype) -> None:
    """More tokens than a tile has; the same codes as the reference's but for ties, and no other page touched."""
    tokens, weight = 67, draw(WIDTH, seed=2)
    key, value = draw(2, tokens, WIDTH), draw(2, tokens, WIDTH, seed=1)
    key[0, 3, 7], value[1, 2] = 300.0, 1000.0  # outliers stay with their channel and their token
    cos, sin = turns(2, tokens, WIDTH // 2)
    got, expected = pages_of_codes(codes, tokens), pages_of_codes(codes, tokens)
    commit_triton.write(key, value, weight, 1e-6, cos, sin, layout, *got, [2, 0])
    commit_reference.write(key, value, weight, 1e-6, cos, sin, layout, *expected, [2, 0])
    chosen = [2, 0]
    for a, b in zip((got[0].scale, got[0].zero, got[1].scale), (expected[0].scale, expected[0].zero, expected[1].scale),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a[chosen], b[chosen], atol=1e-5, rtol=1e-5)
        assert a[1].isnan().all()
    for a, b in ((got[0].codes, expected[0].codes), (got[1].codes, expected[1].codes)):
        assert (a[chosen].float() != b[chosen].float()).float().mean() < 0.002
    step = got[0].scale[chosen].unsqueeze(1) * (1.01 if codes == torch.int8 else 40)
    assert ((got[0].read(torch.float32) - expected[0].read(torch.float32))[chosen].abs() <= step).all()


def test_codes_are_within_half_a_step_of_what_they_stand_for() -> None:
    x = draw(2, 100, 20)
    keys, values = quantise_keys(x, torch.int8), quantise_values(x, torch.int8)
    assert ((keys.read(torch.float32) - x).abs() <= 0.501 * keys.scale.unsqueeze(1) + 1e-6).all()
    assert ((values.read(torch.float32) - x).abs() <= 0.501 * values.scale.unsqueeze(2) + 1e-6).all()
    eighths = quantise_values(x, torch.float8_e4m3fn)
    assert ((eighths.read(torch.float32) - x).abs() <= x.abs() / 16 + eighths.scale.unsqueeze(2) * 2**-9).all()


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_a_channel_or_token_of_zeros_comes_back_as_zeros(kind: str) -> None:
    x = torch.zeros(1, 9, 4)
    for codes in LARGEST:
        found = quantise_keys(x, codes) if kind == "keys" else quantise_values(x, codes)
        assert torch.equal(found.read(torch.float32), x)


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    layout, (cos, sin) = RotaryLayout("split", 3), turns(2, 5, 9)
    key, pages = draw(2, 5, 18), draw(2, 3, 5, 18)
    codes = pages_of_codes(torch.int8, 5)

    def write(key: torch.Tensor, keys: KeyPages, values: ValuePages, chosen: list[int], cos: torch.Tensor) -> None:
        commit_triton.write(key, key, None, 1e-6, cos, sin, layout, keys, values, chosen)

    for arguments, what in (
        ((key[0], pages[0], pages[1], [0, 1], cos), "expected 3 dimensions"),
        ((key, pages[0], pages[1], [0, 3], cos), r"pages \[3\]"),
        ((key, pages[0], pages[1], [1, 1], cos), "expected one each"),
        ((key, pages[0], pages[1], [1], cos), "expected one each"),
        ((key, pages[0].half(), pages[1], [0, 1], cos), "expected torch.float32"),
        ((key, pages[0][:, :4], pages[1], [0, 1], cos), "a chunk is"),
        ((key, pages[0], pages[1], [0, 1], cos.double()), "expected .* float32"),
        ((key[..., :14], pages[0], pages[1], [0, 1], cos), "does not divide into pairs"),
        ((key, codes[0], pages[1], [0, 1], cos), "both or neither"),
        ((key, *codes, [0, 1], cos), "but pages"),
    ):
        with pytest.raises(ValueError, match=what):
            write(*arguments)  # type: ignore[arg-type]
    for arguments, what in (
        ((pages[0], cos[0, 0, :7], sin[0, 0, :7]), "angles are"),
        ((pages[0].double(), cos[0, 0], sin[0, 0]), "keys are torch.float64"),
        ((pages.permute(1, 0, 2, 3), cos[0, 0], sin[0, 0]), "outer dimensions"),
    ):
        with pytest.raises(ValueError, match=what):
            rotary_triton.relocate(*arguments, layout)  # type: ignore[arg-type]
    assert torch.equal(pages, draw(2, 3, 5, 18))
