"""Problem details of the service as the errors that they speak of."""

from collections.abc import Mapping
from typing import Any

import errors
from errors import LongtakeError, ServiceError


def _by_code(root: type[LongtakeError]) -> dict[str, type[LongtakeError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _by_code(child)
    return found


CODES = _by_code(errors.LongtakeError)


def raised(problem: Mapping[str, Any]) -> LongtakeError:
    """The error that problem details speak of."""
    kind = CODES.get(str(problem.get("code")), ServiceError)
    return kind(str(problem.get("detail") or problem.get("title") or "the service gave no reason"))
