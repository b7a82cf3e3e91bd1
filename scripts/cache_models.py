"""Caches pretrained models for machines without internet.

    python -m scripts.cache_models                        # facebook/bart-base, gpt2-large and all-mpnet-base-v2
    python -m scripts.cache_models bert-base-uncased      # others, such as a BERT for --method diffusion_bert
    python -m scripts.cache_models mdlm-owt sedd-small gpt2   # published weights for scripts.import_checkpoint
    python -m scripts.cache_models --check                # without internet: is all as it was fetched?

puts each model under pre_trained_models/<name>, whole and verified or not at all, weights as safetensors only, with
`cached.json` beside them: revision, sizes and SHA-256. Run it where there is internet, then copy the folder. What was
interrupted goes on where it stopped; a model that is there stays at its revision, its damaged files are fetched again.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffusion.training.files import faults, sums
from latent_models.codec import HUB_NAMES, MODELS_DIR, NAMES_HERE
from scripts.fetching.checksums import read_record, write_record
from scripts.fetching.hub import Repository, fetch, find_repository, unfinished
from scripts.job.console import note
from scripts.job.errors import PlainParser, UsageError, going_on, run
from scripts.job.locks import locked

DEFAULTS = ("facebook/bart-base", "gpt2-large", "all-mpnet-base-v2")
RECORD = "cached.json"
UNFINISHED = ".unfinished"  # folder below --output_dir, where no run looks for a model
LOCK = ".fetching.lock"
CONVERTED = "model.safetensors"


def place_of(name: str, folder: Path) -> Path:
    """Where a model lies, by the name under which runs find it; raises UsageError for what is no name on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"{name!r} is no model name; expected one such as facebook/bart-base") from None
    return folder / NAMES_HERE.get(name, name)


def cache(name: str, folder: Path, convert_pickled: bool = False) -> str:
    """Caches one model and says what was done; raises UsageError where it cannot be had."""
    place = place_of(name, folder)
    record = _record(place)
    if record is None and place.exists():
        raise UsageError(f"{place}: is there, but not by this command (no {RECORD}); move it away to have it fetched")
    if _is_whole(place):
        return f"{place}: is there, {_described(record)}"
    repository = find_repository(HUB_NAMES.get(name, name), record and record["revision"])
    paths = _chosen(repository, convert_pickled)
    with locked(folder / LOCK, f"{name}: another process is fetching into {folder}; waiting for that"):
        if not _is_whole(place):  # by now
            _fetch(repository, paths, place, folder)
    return f"{place}: fetched, {_described(_record(place))}"


def _is_whole(place: Path) -> bool:
    record = _record(place)
    return record is not None and not faults(place, record["files"])


def _fetch(repository: Repository, paths: Sequence[str], place: Path, folder: Path) -> None:
    """Fetches what is not there yet, beside the place that it then takes."""
    part = folder / UNFINISHED / place.relative_to(folder).as_posix().replace("/", "--")
    part.mkdir(parents=True, exist_ok=True)
    _keep_only(part, {part / path for path in paths} | {unfinished(part / p, repository.files[p]) for p in paths})
    _take_over(place, part, repository, paths)
    _check_room(part, repository, paths)
    for path in paths:
        if not repository.files[path].is_in(part / path):
            fetch(repository, path, part)
    converted = _convert(part, [path for path in paths if path in repository.pickled])
    files = sums(part, (path.relative_to(part).as_posix() for path in _files(part)))
    record = {"repository": repository.name, "revision": repository.revision, **converted, "files": files}
    write_record(part / RECORD, record)
    _move(part, place)


def _chosen(repository: Repository, convert_pickled: bool) -> list[str]:
    """The paths to fetch; raises UsageError for a repository without weights that may be read."""
    wanted = repository.wanted
    if any(path.endswith(".safetensors") for path in wanted):
        return wanted
    if not repository.pickled:
        raise UsageError(f"{repository.name}: the repository has no weights; expected a model saved as safetensors")
    if not convert_pickled:
        raise UsageError(
            f"{repository.name}: has pickled weights only ({', '.join(repository.pickled)}), which may run code; "
            "expected safetensors; --convert_pickled reads them as bare tensors and keeps safetensors"
        )
    # An index would say that the weights lie in the pickled files.
    return [path for path in wanted if not path.endswith(".bin.index.json")] + repository.pickled


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _keep_only(part: Path, kept: set[Path]) -> None:
    for path in _files(part):
        if path not in kept:
            path.unlink()


def _take_over(place: Path, part: Path, repository: Repository, paths: Sequence[str]) -> None:
    """Links what is sound of a damaged model, which then need not be fetched again."""
    for path in paths:
        if not (part / path).exists() and repository.files[path].is_in(place / path):
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # a file system without links
                os.link(place / path, part / path)


def _check_room(part: Path, repository: Repository, paths: Sequence[str]) -> None:
    needed = sum(repository.files[path].size for path in paths)
    needed -= sum(path.stat().st_size for path in _files(part))
    free = shutil.disk_usage(part).free
    if needed > free:
        raise UsageError(
            f"{repository.name}: {needed / 1e6:,.0f} MB are to be fetched, {free / 1e6:,.0f} MB are free in {part}; "
            "make room or choose another --output_dir"
        )


def _convert(part: Path, pickled: Sequence[str]) -> dict[str, Any]:
    """Puts safetensors in the place of pickled weights; what the record says of it, nothing where there are none."""
    if not pickled:
        return {}
    from scripts.fetching.pickled import convert

    try:
        convert([part / path for path in pickled], part / CONVERTED)
        return {"converted_from": sums(part, pickled)}
    finally:
        for path in pickled:
            (part / path).unlink()


def _move(part: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        shutil.rmtree(place)
    os.rename(part, place)
    with suppress(OSError):  # others are unfinished
        part.parent.rmdir()


def _record(place: Path) -> dict[str, Any] | None:
    return read_record(place / RECORD, "repository", "revision")


def _described(record: dict[str, Any]) -> str:
    size = sum(its["bytes"] for its in record["files"].values()) / 1e6
    return f"revision {record['revision'][:12]} of {record['repository']}, {len(record['files'])} files, {size:,.0f} MB"


def check(names: Sequence[str], folder: Path) -> None:
    """Compares the named models, or all recorded ones, with their records; raises UsageError if one does not fit."""
    places = [place_of(name, folder) for name in names] or sorted(
        path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{RECORD}")
        if UNFINISHED not in path.relative_to(folder).parts
    )  # fmt: skip
    damaged = [path.name.replace("--", "/") for path in sorted(folder.glob(f"{UNFINISHED}/*"))] if not names else []
    wrong = [f"{folder / name}: was not fetched to the end" for name in damaged]
    if not places and not damaged:
        raise UsageError(f"{folder}: no model with a {RECORD} in it; expected those that this command has fetched")
    for place in places:
        record = _record(place)
        found = [f"{place}: not there, or without {RECORD}"] if record is None else faults(place, record["files"])
        if found:
            damaged.append(place.relative_to(folder).as_posix())
            wrong += found
        else:
            note(f"{place}: whole, {_described(record)}")
    for line in wrong:
        note(line)
    if wrong:
        names = " ".join(sorted(set(damaged)))
        raise UsageError(
            f"{len(wrong)} found wrong; python -m scripts.cache_models {names} fetches it anew, where there is internet"
        )


@going_on()
def main() -> None:
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"names on the hub ({', '.join(DEFAULTS)})")
    parser.add_argument("--output_dir", default=str(MODELS_DIR), help="folder that receives them")
    parser.add_argument("--check", action="store_true", help="only compare what is there with its record, offline")
    parser.add_argument(
        "--convert_pickled",
        action="store_true",
        help="where a repository has pickled weights only: read them as bare tensors and keep them as safetensors",
    )
    options = parser.parse_args()
    folder = Path(options.output_dir)
    if options.check:
        return check(options.models, folder)
    for name in options.models or DEFAULTS:
        print(cache(name, folder, options.convert_pickled))


if __name__ == "__main__":
    run(main)
