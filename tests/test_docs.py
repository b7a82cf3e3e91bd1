"""What the documentation names is there: pages, commands, flags."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/README.md"))]
FOLDERS = ("diffusion", "latent_models", "offline_metrics", "scripts", "tests")
OTHERS = {
    *("array", "gres", "partition", "time"),  # of SLURM
    *("ff", "help", "lf", "num_processes"),  # of pytest, Python and accelerate
    *("cfg", "config"),  # of the reference systems, which are named beside ours
}
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(path: Path) -> set[str]:
    """The names that a page's headings have as links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@page
def test_commands_are_there(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"\bscripts(?:\.[a-z_0-9]+)+", text):
        path = ROOT / module.replace(".", "/")
        # What ends in a name that is no file is a member of the module before it.
        assert path.is_dir() or path.with_suffix(".py").is_file() or path.parent.with_suffix(".py").is_file(), module
    for path in re.findall(r"(?<!/)\bscripts/[\w/]+\.(?:py|sh|sbatch|toml)\b", text):
        assert (ROOT / path).is_file(), path


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every field of options, and every flag that a parser takes by itself."""
    sources = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    return {*re.findall(r"^    (\w+): .+ = field\(", text, re.MULTILINE), *re.findall(r'"--(\w+)"', text)}


@page
def test_flags_are_there(page, flags):
    named = set(re.findall(r"(?<![\w-])--([a-zA-Z]\w+)", page.read_text(encoding="utf-8")))
    assert named - flags - OTHERS == set()


def test_a_flag_that_is_not_there_is_found(tmp_path, flags):
    (tmp_path / "page.md").write_text("`--tx_dim 64 --tx_dimension 64`")
    with pytest.raises(AssertionError, match="tx_dimension"):
        test_flags_are_there(tmp_path / "page.md", flags)
