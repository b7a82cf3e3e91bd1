#!/usr/bin/env bash
# Scores trained runs on the test split over 5 sampling seeds (42 to 46), and prints one table of them.
#
#   SAMPLES=1000 scripts/diffusion/test_eval.sh RUN_DIR ...
set -euo pipefail
python=${PYTHON:-python}

for run in "$@"; do
    "$python" train_text_diffusion.py --eval_test --resume_dir "$run" --num_samples "${SAMPLES:-1000}"
done
"$python" -m scripts.compare --runs "$@"
