"""Dashboards and alerts, made of the metric declarations: ``python -m monitoring`` writes ``k8s/monitoring``.

Stands outside, like ``bench``: imports ``actors.metrics`` and ``errors``, and nothing imports it.
"""
