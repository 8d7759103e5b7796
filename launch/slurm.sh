#!/usr/bin/env bash
#SBATCH --job-name=nca_jax
#SBATCH --output=runs/nca_jax-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
# Trains on a SLURM cluster. Run on a login node it says what it costs and submits itself; the job trains by srun.
#
#   CONFIG=experiments/nca_pretrain.py:size=1b6 WORKDIR=runs/nca NODES=2 HOURS=24 CHIP=H100 GPUS=8 \
#     bash launch/slurm.sh [--dry-run] [--config.a.b=c ...]
#
# Needed:
#   CONFIG     an experiment with its words, such as experiments/nca_pretrain.py:size=1b6,band=50+
#   WORKDIR    the folder of the run, such as runs/nca, which all nodes see; the same one goes on where it stopped
#   NODES      how many nodes
#   HOURS      the job's limit of time; 180 s before its end the run is saved and queued again
#   CHIP       what it runs on, for the cost: cpu, or one of those that a wrong name lists
# With defaults:
#   GPUS       accelerators of a node (0)
#   TASKS      processes of a node: 1, which has all its GPUs, or as many as GPUS, one each (1)
#   CPUS       cores of a process; the search for rules uses them all (the cluster's default)
#   MFU        assumed share of the chips' peak, for the cost (0.4)
#   RESTARTS   how often it is queued again after exit code 75 (100)
#   PYTHON     the interpreter, which all nodes see (.venv/bin/python, which `bash launch/env.sh` makes)
#
# sbatch's own variables choose the rest: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_OUTPUT, ...
# After SIGTERM (the limit of time, a preemption, or scancel --signal=TERM) the run saves, ends with 75 and is queued
# again; its log goes on in the same file. A plain scancel ends it.
set -euo pipefail
here=$(dirname "$0")
[ -e "$here/common.sh" ] || here=${SLURM_SUBMIT_DIR:-.}/launch # SLURM runs a copy that stands elsewhere
# shellcheck source=common.sh
source "$here/common.sh"
begin "$@"
need CONFIG WORKDIR NODES HOURS CHIP
GPUS=${GPUS:-0} TASKS=${TASKS:-1}
number NODES TASKS
[[ $GPUS =~ ^[0-9]+$ ]] || stop "GPUS = $GPUS: must be a whole number"
if [ "$GPUS" != 0 ] && [ "$TASKS" != 1 ] && [ "$TASKS" != "$GPUS" ]; then
  stop "TASKS = $TASKS: must be 1, or $GPUS as GPUS"
fi
export CONFIG WORKDIR NODES HOURS CHIP GPUS TASKS MFU RESTARTS PYTHON
chips=$((NODES * (GPUS > 0 ? GPUS : TASKS)))
train=(srun --kill-on-bad-exit=0 --wait=600 ${CPUS:+--cpus-per-task="$CPUS"}
  "$PYTHON" -m nca_jax train --config="$CONFIG" --workdir="$WORKDIR" "${changes[@]+"${changes[@]}"}")
if [ "$GPUS" -gt 1 ] && [ "$TASKS" = 1 ]; then # under SLURM JAX takes one GPU a process, unless it is told
  train=(env JAX_LOCAL_DEVICE_IDS="$(seq -s , 0 $((GPUS - 1)))" "${train[@]}")
fi
cost --chip="$CHIP" --chips="$chips"

if [ -z "${SLURM_JOB_ID:-}" ]; then
  minutes=$(awk -v hours="$HOURS" 'BEGIN { print int(60 * hours + 0.999) }')
  [ "$minutes" -ge 10 ] || stop "HOURS = $HOURS: must be at least 10 minutes, 0.17, since the last 3 are for saving"
  submit=(sbatch --nodes="$NODES" --ntasks-per-node="$TASKS" --time="$minutes" ${CPUS:+--cpus-per-task="$CPUS"})
  [ "$GPUS" = 0 ] || submit+=(--gpus-per-node="$GPUS")
  run mkdir -p runs # for the log
  run "${submit[@]}" launch/slurm.sh "${changes[@]+"${changes[@]}"}"
  if [ -n "$dry_run" ]; then
    echo "# and in the job:"
    words "${train[@]}"
  fi
  exit
fi

words "${train[@]}"
[ -z "$dry_run" ] || exit 0

state() {
  squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T
}

# SLURM signals the tasks itself, at the limit of time and where it ends the job. Only a signal meant for this script
# alone is handed on, and not to srun, which would kill them at once.
trap 'signals=$((signals + 1)); [ "$(state)" != RUNNING ] || scancel --signal=TERM "$SLURM_JOB_ID"' TERM
start "${train[@]}"
finish
if again "$code" "${SLURM_RESTART_COUNT:-0}"; then
  found=$(state)
  echo "interrupted, with everything saved; the job is $found"
  # Any other state means that SLURM is ending the job, by a preemption or scancel: what follows is its to say.
  [ "$found" != RUNNING ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
