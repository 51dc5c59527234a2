"""What is asked of a Prometheus, over its HTTP API."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from errors import ServiceError


@dataclass(frozen=True)
class Line:
    """One series of an answer: what its labels say, times in seconds since 1970, and values, of which none is NaN."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]


class Prometheus:
    """Answers of one Prometheus. Raises ``ServiceError`` where it answers with an error, or not at all."""

    def __init__(self, http: httpx.Client) -> None:
        """``http``: with the address of Prometheus as its base."""
        self.http = http

    def over(self, expression: str, begin: float, end: float, step_s: float) -> list[Line]:
        """An expression over a time; series without a value in it are left out."""
        query = {"query": expression, "start": begin, "end": end, "step": step_s}
        found = []
        for one in self._asked("query_range", query)["result"]:
            points = [(float(at), float(value)) for at, value in one["values"]]
            points = [(at, value) for at, value in points if not math.isnan(value)]
            if points:
                times, values = zip(*points, strict=True)
                found.append(Line(one["metric"], times, values))
        return found

    def rules(self) -> dict[str, str]:
        """Every alert by name, and how it fares: ``ok``, ``unknown`` (not evaluated yet), or what is wrong."""
        groups = self._asked("rules", {})["groups"]
        return {rule["name"]: rule.get("lastError") or rule["health"] for group in groups for rule in group["rules"]}

    def _asked(self, what: str, query: Mapping[str, Any]) -> Any:
        try:
            answer = self.http.get(f"/api/v1/{what}", params=dict(query))
        except httpx.HTTPError as error:
            raise ServiceError(f"{self.http.base_url} cannot be reached: {error!r}; is Prometheus running?") from error
        if answer.is_error:
            raise ServiceError(f"Prometheus answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()["data"]
