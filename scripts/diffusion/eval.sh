#!/usr/bin/env bash
# Scores trained runs on the validation split, one sampling seed.
#
#   SAMPLES=1000 scripts/diffusion/eval.sh RUN_DIR ...
set -euo pipefail
python=${PYTHON:-python}

for run in "$@"; do
    "$python" train_text_diffusion.py --eval --resume_dir "$run" --num_samples "${SAMPLES:-1000}"
done
