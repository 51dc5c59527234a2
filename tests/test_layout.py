"""The layout and import rules of the house: one direction, and few who may touch ray, triton or the environment."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Whoever stands further left may import what stands further right, and its own kind.
ORDER = [
    {"cli"},
    {"serve_app"},
    {"settings"},
    {"actors"},
    {"streams"},
    {"models", "media"},
    {"sizing"},
    {"cache", "kernels", "scaling", "client", "web"},
    {"wire"},
    {"errors"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
OUTSIDE = {"bench", "k8s", "monitoring", "tests", "training"}
RESTRICTED = {"ray": {"serve_app", "actors"}, "triton": {"kernels"}}
SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if not {".venv", "build", "node_modules"} & set(path.relative_to(ROOT).parts)
)


def owner(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, also inside functions."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in named(node)}


def named(node: ast.AST) -> set[str]:
    """Top-level names of what a statement imports itself."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "relative import"
        return {(node.module or "").split(".")[0]}
    return set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = owner(path)
    if here in OUTSIDE:
        return
    assert here in RANK, f"{here} has no place in the layout"
    for name in imported(path):
        assert name not in OUTSIDE, f"{here} imports {name}"
        if name in RANK and name != here:
            assert RANK[name] > RANK[here], f"{here} imports {name}"
        if name in RESTRICTED:
            assert here in RESTRICTED[name], f"{here} imports {name}"


def test_sizes_follow_from_the_books_alone() -> None:
    """What a plan is computed from needs no tensors, no model and no machine."""
    for path in (ROOT / "sizing").rglob("*.py"):
        assert imported(path) <= {*sys.stdlib_module_names, "sizing", "cache", "wire", "errors"}, path


def test_monitoring_knows_the_declarations_and_nothing_else_of_us() -> None:
    for path in (ROOT / "monitoring").rglob("*.py"):
        ours = imported(path) & (set(RANK) | OUTSIDE)
        assert ours <= {"actors", "errors", "monitoring"}, path
        assert "from actors" not in path.read_text().replace("from actors.metrics", ""), path


def test_nixl_is_imported_in_one_file_when_it_is_asked_for() -> None:
    door = ROOT / "actors" / "transport" / "nixl.py"
    for path in SOURCES:
        if owner(path) not in OUTSIDE:
            assert not {"nixl", "nixl_cu12"} & imported(path), path  # nor there: by importlib, inside a function
            assert path == door or "nixl_cu12" not in path.read_text(), path


def test_libraries_of_models_are_imported_where_a_model_is_loaded() -> None:
    """They take seconds of a processor and 250 MB; gateways, ledgers and stores are to begin without."""
    for path in SOURCES:
        if owner(path) not in OUTSIDE:
            first = {name for node in ast.parse(path.read_text()).body for name in named(node)}
            assert not {"diffusers", "transformers"} & first, path


def test_the_leaves_need_the_standard_library_and_msgpack_only() -> None:
    for leaf in ("wire", "errors"):
        foreign = imported(ROOT / f"{leaf}.py") - set(sys.stdlib_module_names) - {"msgpack", "errors"}
        assert not foreign, f"{leaf} imports {foreign}"


def test_importing_the_kernels_package_imports_nothing() -> None:
    """An unrelated package of this name exists; ours must stay free to be imported first."""
    assert not imported(ROOT / "kernels" / "__init__.py")


def test_the_books_need_no_tensors() -> None:
    """What decides is plain Python; only the pool, the tiers, their records and their codecs hold tensors."""
    for path in (ROOT / "cache").rglob("*.py"):
        tensors = path.name in ("pool.py", "tiers.py", "host_tier.py", "records.py", "codec.py")
        if not tensors and path.parent.name not in ("codecs", "storage"):
            assert "torch" not in imported(path), path


def test_what_decides_about_the_fleet_needs_the_standard_library_and_has_no_clock() -> None:
    import sys

    for path in (ROOT / "scaling").rglob("*.py"):
        names = imported(path)
        assert not names - set(sys.stdlib_module_names) - {"errors", "scaling", "wire"}, path
        assert not {"time", "datetime", "random"} & names, path


def test_only_settings_reads_the_environment() -> None:
    for path in SOURCES:
        if owner(path) in OUTSIDE | {"settings"}:
            continue
        names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert not {"environ", "getenv"} & names, path


def test_no_broad_except_hides_an_error() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}"
                name = getattr(node.type, "id", "")
                reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                assert name not in ("Exception", "BaseException") or reraises, f"{path}:{node.lineno}"


def test_every_package_is_declared() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    products = {owner(p) for p in SOURCES} - OUTSIDE
    assert products == {name.split(".")[0] for name in declared["packages"]} | set(declared["py-modules"])
