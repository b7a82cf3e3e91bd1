#!/usr/bin/env bash
# Trains every method on E2E with one trunk and one budget, scores each and prints the table of docs/baselines.md.
#
#   scripts/diffusion/e2e_methods.sh DATA_DIR [OUTPUT_DIR] [further flags of train_text_diffusion.py ...]
#
# Needs the models of docs/e2e.md. A run that is there already is not trained again; an unfinished one goes on, with
# more STEPS or other flags too as far as a run may change.
set -euo pipefail
data=$1 out=${2:-saved_models/e2e-methods}
python=${PYTHON:-python}
methods=${METHODS:-"ar mdlm d3pm sedd gidd diffusion_bert latent"}
steps=${STEPS:-1200} samples=${SAMPLES:-200}

runs=()
for method in $methods; do
    run=$out/$method
    runs+=("$run")
    place=(--output_dir "$run") own=()
    if [ -e "$run/args.json" ]; then place=(--resume_training --resume_dir "$run"); fi
    if [ "$method" = latent ]; then own=(--self_condition --beta_schedule tan --tan_d 7); fi
    "$python" train_text_diffusion.py --method "$method" --dataset_name e2e --data_dir "$data" \
        --enc_dec_model bart-e2e --perplexity_model gpt2-e2e --mauve_model all-MiniLM-L6-v2 \
        --tx_dim 192 --tx_depth 4 --scale_shift --disable_dropout \
        --num_train_steps "$steps" --train_batch_size 64 --learning_rate 2e-3 --lr_warmup_steps 50 --ema_decay 0.99 \
        --sampling_timesteps 64 --eval_batch_size 64 --num_samples 16 --save_and_sample_every $((steps / 2)) \
        --save_dir "$out" "${place[@]}" "${own[@]}" "${@:3}"
    "$python" train_text_diffusion.py --eval_test --resume_dir "$run" --num_samples "$samples"
    "$python" train_text_diffusion.py --ppl_eval --resume_dir "$run"
done
"$python" -m scripts.compare --runs "${runs[@]}" --output_dir "$out"
