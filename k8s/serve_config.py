"""Writes ``serveConfigV2`` of every overlay from its ``settings.yaml``: python -m k8s.serve_config."""

from pathlib import Path

import yaml

from serve_app import deploy_config
from settings import plain_settings

HOST, PORT = "0.0.0.0", 8000  # inside the pod; who gets there is for the network policies to say
OVERLAYS = Path(__file__).parent / "overlays"
HEAD = "# Made of settings.yaml by `python -m k8s.serve_config`; a test compares them.\n"


class _Block(str):
    """A text that is written as a block."""


def _block(dumper: yaml.SafeDumper, text: _Block) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")


class _Dumper(yaml.SafeDumper):
    """Writes ``_Block`` as it is."""


_Dumper.add_representer(_Block, _block)


def settings_files() -> list[Path]:
    """The settings of the overlays that have some."""
    return sorted(OVERLAYS.glob("*/settings.yaml"))


def serve_config(settings: Path) -> str:
    """What ``serve deploy`` takes, for these settings. Raises ``ConfigError``."""
    return yaml.safe_dump(deploy_config(plain_settings(settings), HOST, PORT), sort_keys=False)


def patch(settings: Path) -> str:
    """The patch of the RayService that brings it. Raises ``ConfigError``."""
    body = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "longtake"},
        "spec": {"serveConfigV2": _Block(serve_config(settings))},
    }
    return HEAD + yaml.dump(body, Dumper=_Dumper, sort_keys=False)


if __name__ == "__main__":
    for file in settings_files():
        file.with_name("serve.yaml").write_text(patch(file), encoding="utf-8")
