"""Makes a run of published weights of MDLM, SEDD or GIDD, to be evaluated, sampled and continued like any other.

    python -m scripts.import_checkpoint mdlm-owt --family mdlm --dataset_name CORPUS --output_dir RUN
    python -m scripts.import_checkpoint FOLDER_OR_FILE --family gidd --tokenizer gpt2 --p_uniform 0.2 ...

The weights are safetensors, or a PyTorch file of tensors, that of a training too (with its moving average). Sizes are
read off them, settings off a config.json beside them; all other flags are those of train_text_diffusion.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from accelerate.utils import set_seed

from diffusion.denoiser import HEAD_DIM
from diffusion.process import Process
from diffusion.training.checkpoint import load_weights
from diffusion.training.files import replacing, sha256, write_text
from diffusion.training.tracker import Trackers
from diffusion.training.trainer import Trainer
from scripts.composition.build import System, build
from scripts.composition.checks import check, check_free, tokenizer_name
from scripts.composition.methods import METHODS
from scripts.composition.options import GROUPS, MODES, Options
from scripts.composition.spaces import save_space
from scripts.composition.token_space import TokenSpace, make_token_codec
from scripts.evaluation.run_folder import IMPORTED
from scripts.job.command_line import flags, given_flags, parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.published.config import FAMILIES, HEADS, LENGTH, Config, Family, padded
from scripts.published.weights import Published, read_published

TOKENIZER = "gpt2"  # of all three families, where they bring none
READ_OFF = ("method", "trunk", "tx_dim", "tx_depth", "dit_heads", "dit_cond_dim")
OUT_OF_PLACE = (*MODES, "resume_dir", "milestone", "dry_run", "compile", "recipe")


@dataclass
class ImportOptions:
    _argument_group_name: ClassVar[str] = "import"

    family: str | None = field(default=None, metadata={"help": "whose weights they are: mdlm, sedd or gidd"})
    heads: int | None = field(
        default=None, metadata={"help": "heads, where neither rotary tables nor config.json tell them (64 wide ones)"}
    )

    def __post_init__(self):
        if self.heads is not None and self.heads < 1:
            raise UsageError(f"--heads {self.heads}: expected at least 1")
        if self.family not in FAMILIES:
            raise UsageError(f"--family {self.family or '(not given)'}: expected one of {', '.join(FAMILIES)}")


def main() -> None:
    argv = sys.argv[1:]
    place = argv.pop(0) if argv and not argv[0].startswith("-") else None
    own, *groups = parse([ImportOptions, *GROUPS], argv, __doc__)
    target = check_command(place, Options(*groups, frozenset(given_flags(argv))))
    family = FAMILIES[own.family]
    published = read_published(place)
    options = options_of(published, own, argv)
    inputs = check(options)

    tokens = replace(options.tokens, tokenizer=tokenizer_name(options))
    codec = make_token_codec(tokens, options.codec, inputs.corpus, options.data.running_text is not None)
    space = TokenSpace.of(codec.with_pad() if family.own_pad else codec, tokens, inputs.corpus)
    published = fitted(published, METHODS[own.family].process(options, space), family, options)
    system = build(options, inputs.corpus, space)
    with replacing(target) as beside:
        beside.mkdir()
        save_space(space, beside)
        save_checkpoint(system, published, beside)
        options.save(beside)
        (beside / "metrics.jsonl").touch()
        origin = {"family": own.family, "file": published.path.name, "sha256": sha256(published.path)}
        write_text(beside / IMPORTED, json.dumps(origin, indent=1) + "\n")
    parameters, heads = sum(value.numel() for value in published.weights.values()), options.denoiser.heads
    print(
        f"{target}: {own.family}, {parameters / 1e6:.1f} M parameters, {published.depth} blocks {published.width} wide "
        f"with {heads} heads, {published.rows:,} ids",
        flush=True,
    )


def check_command(place: str | None, options: Options) -> Path:
    """The folder to be made; UsageError for a command line that cannot be meant."""
    if place is None:
        raise UsageError("expected the folder or file of a checkpoint, or a cached model, as the first argument")
    for flag in sorted(options.given):
        if flag in READ_OFF:
            raise UsageError(f"--{flag}: follows from the checkpoint and --family; leave it out")
        if flag in OUT_OF_PLACE:
            raise UsageError(f"--{flag}: is for the run that this makes; leave it out")
    if options.run.output_dir is None:
        raise UsageError("--output_dir: expected the folder of the run to be made")
    target = Path(options.run.output_dir)
    check_free("output_dir", target)
    return target


def options_of(published: Published, own: ImportOptions, argv: list[str]) -> Options:
    """The options of the run: those of the family and config.json, then those given, then what the shapes say."""
    config, folder = Config.beside(published.path), published.path.parent
    config.check(published)
    usual: dict[str, Any] = FAMILIES[own.family].flags(config)
    usual["tokenizer"] = folder if (folder / "tokenizer.json").is_file() else TOKENIZER
    if (length := config.told(LENGTH, int)) is not None:
        usual["max_length"] = length
    sizes = {
        "method": own.family,
        "trunk": "dit",
        "tx_dim": published.width,
        "tx_depth": published.depth,
        "dit_heads": heads_of(published, config, own.heads),
        "dit_cond_dim": published.condition,
    }
    argv = [*flags(usual), *argv, *flags(sizes)]
    _, *groups = parse([ImportOptions, *GROUPS], argv)
    return Options.from_groups(groups, argv)


def heads_of(published: Published, config: Config, given: int | None) -> int:
    """The heads of the network, by its rotary tables, config.json or --heads; UsageError where they do not agree."""
    known = published.heads or config.told(HEADS, int)
    if None not in (known, given) and known != given:
        raise UsageError(f"--heads {given}: {published.path} has {known}; leave it out")
    heads = known or given
    if heads is None and published.width % HEAD_DIM == 0:
        return published.width // HEAD_DIM
    if heads is None or published.width % (2 * heads):
        raise UsageError(
            f"{published.path}: the network is {published.width} wide, which {heads or 'no number of'} heads cannot "
            "share; expected --heads, twice which divides the width"
        )
    return heads


def fitted(published: Published, process: Process, family: Family, options: Options) -> Published:
    """The checkpoint for the ids of the process: without dead rows; UsageError where they are others."""
    rows, wanted = published.rows, process.vocab_size
    if rows == wanted:
        return published
    if family.is_padded and rows == padded(wanted):
        note(f"{published.path}: the last {rows - wanted} of its {rows:,} rows stand for no token and are left out")
        return published.cut(wanted)
    raise UsageError(
        f"--tokenizer {tokenizer_name(options)}: has {wanted:,} ids, those of special tokens among them, and the "
        f"checkpoint {published.path} {rows:,}; give the tokenizer that it was trained with"
    )


def save_checkpoint(system: System, published: Published, run_dir: Path) -> None:
    """Writes the checkpoint of step 0 that a run begins with, of these weights."""
    options = system.options
    load_weights(system.denoiser, published.weights, published.path)
    accelerator = Accelerator(mixed_precision=options.training.mixed_precision)
    set_seed(options.training.random_seed, device_specific=True)  # dropout draws from the global generators
    trainer = Trainer(
        options.training,
        options.optim,
        system.objective,
        system.denoiser,
        system.data("train"),
        system.data("valid"),
        run_dir,
        accelerator=accelerator,
        make_tracker=lambda step: Trackers(),
    )
    load_weights(trainer.ema.ema_model, published.averaged, published.path)
    if published.updates is not None:  # the average goes on where it was, not with a copy of the weights
        trainer.ema.initted.fill_(True)
        trainer.ema.step.fill_(trainer.ema.update_after_step + 1 + published.updates)
    trainer.save()


if __name__ == "__main__":
    run(main)
