# shellcheck shell=bash disable=SC2034
# Sourced by the .sbatch files, in the folder that the job was submitted from: the root of the repository.
# Nothing asks the network, and a command that stops before the time limit is queued again and goes on.

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python}

# Where the tasks of a job meet.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# requeued COMMAND ...: passes SLURM's signals on to the command; when it says that it can go on (75), queues the job
# again. Not after SIGTERM, which is scancel, or a preemption that SLURM itself requeues for.
requeued() {
    local pid status interrupted="" cancelled=""
    "$@" &
    pid=$!
    trap 'interrupted=1; kill -USR1 "$pid"' USR1
    trap 'interrupted=1; cancelled=1; kill -TERM "$pid"' TERM
    while :; do # a signal ends the wait, not the command
        interrupted="" status=0
        wait "$pid" || status=$?
        [ -n "$interrupted" ] || break
    done
    trap - USR1 TERM
    if [ "$status" -eq 75 ] && [ -z "$cancelled" ]; then
        echo "stopped before its end; queued again to go on"
        # SLURM ends this script then; one that ended by itself before could be taken for a job that failed.
        if scontrol requeue "$SLURM_JOB_ID"; then sleep 120; fi
    fi
    return "$status"
}

# train_or_resume RUN_DIR FLAGS ...: sets `command` to what begins the run, or to what continues it. The flags go with
# either: of a run that is there the same ones change nothing, and others take effect or are refused.
train_or_resume() {
    local run=$1 place=(--output_dir "$1")
    shift
    if [[ -e $run/args.json ]]; then place=(--resume_training --resume_dir "$run"); fi
    command=("$python" train_text_diffusion.py "${place[@]}" "$@")
}
