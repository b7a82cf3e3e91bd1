#!/usr/bin/env bash
# One of the processes of a run: tells accelerate which one, as `accelerate launch` would, and becomes the command.
# Without a launcher in between, SLURM's signals reach each process and its exit status reaches SLURM.
set -euo pipefail
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
exec "$@"
