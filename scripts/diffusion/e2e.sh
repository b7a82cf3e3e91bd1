#!/usr/bin/env bash
# Trains latent diffusion on E2E at full size: 100,000 steps, with dropout and weight decay against overfitting.
#
#   scripts/diffusion/e2e.sh [further flags of train_text_diffusion.py, such as --random_seed 41 --T_schedule linear ...]
set -euo pipefail
python=${PYTHON:-python}

"$python" train_text_diffusion.py --dataset_name e2e --enc_dec_model facebook/bart-base \
    --num_train_steps 100000 --train_batch_size 64 --learning_rate 1e-4 --adam_weight_decay 0.01 \
    --tx_dim 768 --tx_depth 12 --objective pred_x0 --loss_type l1 --beta_schedule linear \
    --scale_shift --self_condition --num_samples 1000 "$@"
