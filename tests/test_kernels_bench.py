"""The benchmark of the kernels: its cases are right, and one that is not gets no figure."""

import pytest
import torch

from bench.kernels import TOLERANCE, Case, Size, attention_cases, differs, itself, streaming_cases
from kernels import coded_queries
from tests.kernel_cases import DEVICE

SMALL = Size(heads=1, video=5, audio=3, layers=1, device=DEVICE)


def test_every_case_equals_its_reference_and_what_it_is_to_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_queries, "FEW_QUERIES", 3)
    monkeypatch.setattr(coded_queries, "SHORT_PAGE", 3)
    cases = [*attention_cases(SMALL, 2), *streaming_cases(SMALL)]
    assert len(cases) == 15
    for case in cases:
        assert differs(case) <= TOLERANCE, case.name
        assert case.moved_bytes > 0
        if case.rival is not None and "fp8" not in case.name:
            rival = case.rival().transpose(1, 2).flatten(2)
            torch.testing.assert_close(rival.float(), case.run().float(), atol=0.05, rtol=0)


@pytest.mark.parametrize("wrong", [1.1, float("nan")])
def test_a_kernel_that_differs_or_leaves_nan_is_found_out(wrong: float) -> None:
    right = torch.ones(3)
    case = Case("bad", lambda: right * wrong, lambda: right, itself, 1)
    assert differs(case) > TOLERANCE
