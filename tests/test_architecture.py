"""The three rules of the house: data flows one way, three packages that never meet, nothing hides a library."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("latent_models", "diffusion", "offline_metrics")
COMPOSITION = ("scripts", "train_text_diffusion")
LAYERS = ("job", "fetching", "composition", "sampling", "evaluation")  # of scripts/: each rests on those before it


def imports(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    return {name.split(".")[0] for name in imported(path)}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it: of `from a.b import c` both a.b and a.b.c."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_never_import_each_other(package):
    forbidden = {*PACKAGES, *COMPOSITION} - {package}
    found = {str(path): imports(path) & forbidden for path in (ROOT / package).rglob("*.py")}
    assert found
    assert not {path: names for path, names in found.items() if names}


def modules(folder: Path) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in folder.rglob("*.py")
    }


@pytest.mark.parametrize("package", [*PACKAGES, "scripts"])
def test_no_import_circles(package):
    known = modules(ROOT / package)
    graph = {}
    for name, path in known.items():
        graph[name] = (imported(path) & set(known)) - {name}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import circle: {' -> '.join([*path[path.index(name):], name])}"
        for target in graph[name]:
            visit(target, (*path, name))

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("layer", LAYERS)
def test_what_jobs_share_rests_on_what_stands_below_it(layer):
    below = tuple(f"scripts.{name}" for name in LAYERS[: LAYERS.index(layer) + 1])
    found = {path: imported(path) for path in (ROOT / "scripts" / layer).glob("*.py")}
    assert found
    for path, names in found.items():
        assert [name for name in names if name.startswith("scripts.") and not name.startswith(below)] == [], path


def test_what_stands_at_the_top_of_scripts_is_run_and_never_imported():
    jobs = {f"scripts.{path.stem}": path for path in (ROOT / "scripts").glob("*.py") if path.stem != "__init__"}
    assert [name for name, path in jobs.items() if "__main__" not in path.read_text(encoding="utf-8")] == []
    found = {str(path): imported(path) & set(jobs) for path in (ROOT / "scripts").rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_folders_of_data_hold_no_code():
    for folder in ("datasets", "pre_trained_models"):
        assert not list((ROOT / folder).rglob("*.py"))


def test_no_module_hides_an_installed_package():
    installed = set(importlib.metadata.packages_distributions()) | sys.stdlib_module_names
    ours = {path.stem for folder in (*PACKAGES, "scripts") for path in (ROOT / folder).rglob("*.py")} - {"__init__"}
    # Inside a package a name can only hide something where its folder itself is put on the path, as `evaluate` does.
    hidden = {path.stem for path in (ROOT / "offline_metrics").glob("*.py")} & installed
    assert not hidden
    assert not ours & {"utils", "helpers"}


def test_importing_a_package_has_no_side_effects():
    """No output, no thread setting and no torch random state touched by importing everything we wrote."""
    names = [name for package in PACKAGES for name in modules(ROOT / package)]
    code = (
        "import torch, importlib\n"
        "before = torch.get_rng_state().clone(), torch.get_num_threads()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert torch.equal(before[0], torch.get_rng_state())\n"
        "assert before[1] == torch.get_num_threads()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
