"""The pool's pages as kernels take them: elements as they are, codes with what they are multiples of."""

from cache.pool import Pool
from cache.spec import AttentionType
from kernels.quantised import KeyPages, QuantisedKeys, QuantisedValues, ValuePages


def layer_pages(pool: Pool, type: AttentionType, layer: int) -> tuple[KeyPages, ValuePages]:
    """Views of the keys and values [pages, tokens, width] of one layer."""
    keys, values = pool.storage[type][layer].unbind(0)
    if type not in pool.ends:
        return keys, values
    ends = pool.ends[type]
    scale, zero = ends.key_scale[layer], ends.key_zero[layer]
    return QuantisedKeys(keys, scale, zero), QuantisedValues(values, ends.value_scale[layer])
