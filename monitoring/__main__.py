"""``python -m monitoring``: writes dashboards and alerts to ``k8s/monitoring``, or elsewhere."""

import argparse
from pathlib import Path

from monitoring.files import files
from monitoring.rules import RUNBOOK

HERE = Path(__file__).resolve().parent.parent / "k8s" / "monitoring"


def main() -> None:
    """Write all files that are made."""
    parser = argparse.ArgumentParser(description="Write Grafana dashboards and Prometheus alerts.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder (default: k8s/monitoring)")
    parser.add_argument("--dashboards", type=Path, help="write only the dashboards, into this folder of Grafana's")
    parser.add_argument("--runbook", default=RUNBOOK, help=f"address of the runbook in alerts (default: {RUNBOOK})")
    given = parser.parse_args()
    for path, contents in files(given.runbook).items():
        if given.dashboards is None:
            put(given.out / path, contents)
        elif path.endswith(".json"):
            put(given.dashboards / Path(path).name, contents)


def put(path: Path, contents: str) -> None:
    """Write a file, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(contents)
    print(path)


if __name__ == "__main__":
    main()
