"""Copies what sampling needs of a run into a small folder to share: options, space, averaged weights, the log.

    python -m scripts.export_run --run RUN --output_dir FOLDER

The folder works wherever a run folder does, except that training cannot be resumed from it. Weights are stored in half
precision, half the size of the run's own.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffusion.training import checkpoint
from diffusion.training.files import replacing, write_tensors
from scripts.composition.build import space_type
from scripts.composition.checks import check_free, check_writable
from scripts.composition.options import Options, parse
from scripts.composition.spaces import RECORD, check_files
from scripts.evaluation.run_folder import IMPORTED
from scripts.job.errors import UsageError, run


@dataclass
class ExportOptions:
    _argument_group_name: ClassVar[str] = "export"

    run: str | None = field(default=None, metadata={"help": "the run folder to copy from"})
    output_dir: str | None = field(default=None, metadata={"help": "a new folder"})

    def __post_init__(self):
        if self.run is None or self.output_dir is None:
            raise UsageError("expected --run, the folder to copy from, and --output_dir, a new folder")
        check_free("output_dir", self.output_dir)


def main() -> None:
    (export,) = parse([ExportOptions], description=__doc__)
    source, target = Path(export.run), Path(export.output_dir)
    options = Options.from_argv(["--gen_data", "--resume_dir", str(source)])
    check_files(source)
    newest = checkpoint.find_checkpoint(source, groups=("ema",))
    check_writable("output_dir", target)
    (weights,), _ = checkpoint.load(newest, "ema")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    there = newest.relative_to(source)
    with replacing(target) as beside:
        (beside / there).mkdir(parents=True)
        may_be = (*space_type(options).files, RECORD, IMPORTED)  # some have no record
        own = [name for name in may_be if (source / name).exists()]
        for name in ["args.json", *own, "metrics.jsonl", there / checkpoint.STATE]:
            copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
            copy(source / name, beside / name)
        write_tensors(beside / there / "ema.safetensors", halves)
        checkpoint.seal(beside / there)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) / 1e6
    print(f"{target}: step {checkpoint.step_of(newest):,}, {size:.1f} MB")


if __name__ == "__main__":
    run(main)
