"""The demo: trains a small latent diffusion model of restaurant sentences from scratch, samples and scores it.

    python -m scripts.demo          # what `make demo` runs: a few minutes on two CPU cores
    python -m scripts.demo --recipe reference | frontier

Everything it needs is in the repository: the corpus, the codec, the scorer, and a model trained for longer to compare.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffusion.training.signals import listening
from offline_metrics import report
from scripts.composition.build import System, load_system
from scripts.composition.options import Options, parse
from scripts.evaluation.evaluation import HUMAN, VALID_SEED, evaluate, write_rows
from scripts.job.console import note
from scripts.job.errors import run
from train_text_diffusion import train

COMMITTED = Path("pre_trained_models/diffusion-demo")  # the same command, trained for longer
MODELS = "--dataset_name demo --enc_dec_model bart-demo --perplexity_model gpt2-demo --mauve_model gpt2-demo"
SIZE = (
    "--tx_dim 192 --tx_depth 4 --disable_dropout --train_batch_size 64 --lr_warmup_steps 50 --learning_rate 2e-3 "
    "--eval_batch_size 128 --num_samples 500"
)
OWN = (
    "--scale_shift --self_condition --beta_schedule tan --tan_d 5 "
    "--sampling_timesteps 20"  # the model trained for longer gains from 50 steps, this one loses
)
RECIPE = f"{SIZE} {OWN}"
STEPS = 1000
SAMPLES_SHOWN = 10
COLUMNS = (
    "acceptance", "perplexity", "corpus_perplexity", "mauve", "mauve_train", "diversity", "rep_4", "memorization",
    "unique_words", "mean_words",
)  # fmt: skip


@dataclass
class DemoOptions:
    _argument_group_name: ClassVar[str] = "demo"

    recipe: str | None = field(default=None, metadata={"help": "train by this recipe instead of the demo's own"})


def trained_here(run_dir: Path, recipe: str | None) -> System:
    """Trains the demo model into `run_dir`, by its own recipe or by a named one."""
    how = OWN if recipe is None else f"--recipe {recipe}"
    argv = f"{MODELS} {SIZE} {how} --num_train_steps {STEPS} --output_dir {run_dir}".split()
    with listening() as stop:
        train(Options.from_argv(argv), stop)
    return load(run_dir)


def load(run_dir: Path) -> System:
    system, step = load_system(Options.from_argv(["--gen_data", "--resume_dir", str(run_dir)]))
    note(f"{run_dir}: step {step:,}")
    return system


def main() -> None:
    (asked,) = parse([DemoOptions], description=__doc__)
    started = time.monotonic()
    run_dir = Path("saved_models/demo") / time.strftime("%Y-%m-%d_%H-%M-%S")
    here, committed = trained_here(run_dir, asked.recipe), load(COMMITTED)
    trained = time.monotonic()
    suite = here.suite(here.corpus.test, VALID_SEED)
    rows, texts = {}, []
    for name, system in (("this run", here), ("trained for longer", committed)):
        evaluation = evaluate(system, suite, VALID_SEED)
        evaluation.write(run_dir / "evaluation" / name.replace(" ", "_"))
        rows |= {HUMAN: evaluation.rows[HUMAN]}
        described = f"{name} ({system.options.sampling.sampling_timesteps} sampling steps)"
        rows |= {f"{described}, {strategy}": evaluation.rows[strategy] for strategy in evaluation.texts}
        texts = texts or evaluation.texts["beam"][:SAMPLES_SHOWN]
    write_rows(run_dir / "evaluation", rows)
    print(f"\nTen samples of the model just trained ({STEPS} steps):\n")
    print("\n".join(f"  {text}" for text in texts))
    print(f"\n{report.table(rows, COLUMNS, human=HUMAN)}")
    done = time.monotonic()
    print(f"trained in {trained - started:.0f} s, sampled and scored both in {done - trained:.0f} s; all in {run_dir}")


if __name__ == "__main__":
    run(main)
