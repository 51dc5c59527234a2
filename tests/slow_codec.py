"""The slow twin of the lossy codecs: one group after the other, one element after the other, in plain float32."""

import numpy as np
import torch

F = np.float32
SMALLEST = F(2.0**-126)


def decoded(layer: torch.Tensor, name: str, group: int) -> torch.Tensor:
    """What keys and values [2, tokens, width] of one layer come back as."""
    tokens, width = layer.shape[1:]
    found = torch.zeros(2, tokens, width, dtype=layer.dtype)
    for channel in range(width):
        for start in range(0, tokens, group):
            index = (0, slice(start, start + group), channel)
            found[index] = _group(layer[index], name, keys=True)
    for token in range(tokens):
        for start in range(0, width, group):
            index = (1, token, slice(start, start + group))
            found[index] = _group(layer[index], name, keys=False)
    return found


def _group(elements: torch.Tensor, name: str, keys: bool) -> torch.Tensor:
    x = [F(v) for v in elements.float().tolist()]
    if name == "fp8":
        scale = max(max(abs(v) for v in x) / F(448), SMALLEST)
        back = [_nearest_e4m3(v * (F(1) / scale)) * scale for v in x]
    else:
        steps = (1 << int(name[3:])) - 1
        if keys:
            low = min(x)
            scale = max((max(x) - low) / F(steps), SMALLEST)
        else:
            scale = max(max(abs(v) for v in x) / F(steps // 2), SMALLEST)
            low = scale * F(-(steps // 2))
        codes = [int(np.rint((v - low) * (F(1) / scale))) for v in x]
        assert all(0 <= code <= steps for code in codes)
        back = [F(code) * scale + low for code in codes]
    return torch.tensor(np.array(back)).to(elements.dtype)


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = -1 if code & 0x80 else 1, (code >> 3) & 15, code & 7
    return sign * (mantissa * 2.0**-9 if not exponent else (8 + mantissa) * 2.0 ** (exponent - 10))


E4M3 = [(code, _e4m3(code)) for code in range(256) if code & 0x7F != 0x7F]


def _nearest_e4m3(value: np.float32) -> np.float32:
    """Ties go to the even mantissa."""
    distance = min(abs(float(value) - number) for _, number in E4M3)
    nearest = [(code & 1, number) for code, number in E4M3 if abs(float(value) - number) == distance]
    return F(min(nearest)[1])
