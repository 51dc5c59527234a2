"""The plain-torch operations against slower truths: the library's rotation, dense attention, loops."""

import weakref

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import apply_interleaved_rotary_emb, apply_split_rotary_emb

from errors import ConfigError
from kernels.attention import BlockTable, attend, page_mass, read
from kernels.commit import write
from kernels.launch import by_form
from kernels.ops import TORCH, ops
from kernels.pack import pack, unpack
from kernels.rotary import RotaryLayout, rotate

DTYPES = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 3, 5])
def test_rotation_equals_the_library_s_in_both_layouts(dtype: torch.dtype, heads: int) -> None:
    width, tokens = heads * 14, 63
    x = torch.randn(2, tokens, width).to(dtype)
    angles = torch.rand(2, tokens, width // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    theirs = apply_interleaved_rotary_emb(x, (cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)))
    assert torch.equal(rotate(x, cos, sin, RotaryLayout("interleaved", heads)), theirs)
    by_head = tuple(a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in (cos, sin))
    theirs = apply_split_rotary_emb(x, by_head)
    ours = rotate(x, cos, sin, RotaryLayout("split", heads))
    torch.testing.assert_close(ours.float(), theirs.float(), atol=DTYPES[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_attention_over_scattered_pages_equals_dense_softmax(dtype: torch.dtype, tokens: int) -> None:
    """One page, many, scattered, with skipped tokens; unused pages are NaN."""
    heads, width, pages = 3, 30, 9
    storage = torch.full((2, pages, tokens, width), float("nan"), dtype=dtype)
    tables = [BlockTable((4,)), BlockTable((2, 3, 4)), BlockTable((7, 0, 5), skip_tokens=tokens - 1)]
    storage[:, [0, 2, 3, 4, 5, 7]] = torch.randn(2, 6, tokens, width).to(dtype)
    query = torch.randn(3, 7, width).to(dtype)
    got = attend(query, storage[0], storage[1], tables, heads)
    shares = page_mass(query, storage[0], tables, heads)
    for row, table in enumerate(tables):
        key, value = (
            torch.cat([s[p] for p in table.pages])[table.skip_tokens :].double().unflatten(-1, (heads, -1))
            for s in storage
        )
        q = query[row].double().unflatten(-1, (heads, -1))
        weights = (torch.einsum("qhd,khd->hqk", q, key) * 10**-0.5).softmax(-1)
        expected = torch.einsum("hqk,khd->qhd", weights, value).flatten(1)
        torch.testing.assert_close(got[row].double(), expected, atol=DTYPES[dtype] * 3, rtol=0)
        sizes = [tokens - table.skip_tokens, *[tokens] * (len(table.pages) - 1)]
        mass = torch.stack([w.sum(-1).mean() for w in weights.split(sizes, -1)])
        torch.testing.assert_close(shares[row].double(), mass, atol=DTYPES[dtype], rtol=0)
        assert shares[row].sum().item() == pytest.approx(1, abs=1e-5)


def test_consecutive_pages_are_read_without_a_copy_and_scattered_ones_are_gathered() -> None:
    storage = torch.randn(8, 5, 6)
    view = read(storage, BlockTable((3, 4, 5), skip_tokens=2))
    assert view.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr()
    assert torch.equal(view, storage[3:6].flatten(0, 1)[2:])
    gathered = read(storage, BlockTable((5, 3), skip_tokens=2))
    assert torch.equal(gathered, torch.cat([storage[5], storage[3]])[2:])


@pytest.mark.parametrize("weighted", [True, False])
def test_commit_normalises_rotates_and_writes_only_its_own_pages(weighted: bool) -> None:
    rows, tokens, width, layout = 3, 7, 24, RotaryLayout("split", 2)
    key, value = torch.randn(2, rows, tokens, width)
    weight = torch.rand(width) if weighted else None
    norm = torch.nn.RMSNorm(width, eps=1e-6, elementwise_affine=weighted)
    if weighted:
        norm.weight.data = weight
    angles = torch.rand(rows, tokens, width // 2)
    pages = torch.full((2, 6, tokens, width), float("nan"))
    write(key, value, weight, 1e-6, angles.cos(), angles.sin(), layout, pages[0], pages[1], [4, 0, 5])
    for row, page in enumerate([4, 0, 5]):
        expected = rotate(norm(key[row]), angles.cos()[row], angles.sin()[row], layout)
        torch.testing.assert_close(pages[0, page], expected.detach(), atol=1e-6, rtol=0)
        assert torch.equal(pages[1, page], value[row])
    assert pages[:, [1, 2, 3]].isnan().all()


def test_a_packed_chunk_unpacks_bit_equal_and_wrong_shapes_are_refused() -> None:
    storage = torch.randn(2, 2, 5, 3, 8).to(torch.bfloat16)
    packed = pack(storage, 3)
    assert packed.is_contiguous()
    alone = torch.randn(2, 2, 1, 3, 8)  # a page that is contiguous already is copied all the same
    assert pack(alone, 0).data_ptr() != alone.data_ptr()
    other = torch.zeros_like(storage)
    unpack(other, 1, packed)
    assert torch.equal(other[:, :, 1], storage[:, :, 3])
    assert not other[:, :, [0, 2, 3, 4]].any()
    for wrong in (packed.float(), packed[:, :, :2]):
        with pytest.raises(ValueError, match="a page is"):
            unpack(other, 1, wrong)


def test_the_implementation_is_an_explicit_choice() -> None:
    assert ops("torch") is TORCH
    with pytest.raises(ConfigError, match="impl is 'cuda'; expected 'torch' or 'triton'"):
        ops("cuda")


def test_a_launch_is_planned_once_for_tensors_of_a_form_and_the_plan_holds_none_of_them() -> None:
    planned = []

    @by_form
    def plan(x: torch.Tensor, pages: tuple[int, ...]) -> int:
        planned.append((x.shape, x.stride(), x.dtype, pages))
        if not pages:
            raise ValueError("no page")
        return len(planned)

    x = torch.zeros(3, 4)
    gone = weakref.ref(x)
    assert plan(x, (1, 2)) == plan(torch.ones(3, 4), (1, 2)) == 1
    others = [plan(torch.zeros(4, 3).T, (1, 2)), plan(x.half(), (1, 2)), plan(x, (2, 1)), plan(x.to("meta"), (1, 2))]
    assert others == [2, 3, 4, 5]
    for _ in range(2):
        with pytest.raises(ValueError, match="no page"):
            plan(x, ())
    assert len(planned) == 7
    with pytest.raises(TypeError, match="pages given by name"):
        plan(x, pages=(1, 2))
    del x
    assert gone() is None
