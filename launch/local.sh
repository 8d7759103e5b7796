#!/usr/bin/env bash
# Trains on this machine, on all of its accelerators or on its CPU, and goes on by itself after an interruption.
#
#   CONFIG=experiments/nca_pretrain.py:size=10m WORKDIR=runs/nca bash launch/local.sh [--dry-run] [--config.a.b=c ...]
#
# Needed:
#   CONFIG     an experiment with its words, such as experiments/nca_pretrain.py:size=10m,band=50+
#   WORKDIR    the folder of the run, such as runs/nca; the same one goes on where it stopped
# With defaults:
#   CHIP       what it runs on, for the cost: cpu, or one of those that a wrong name lists (cpu)
#   CHIPS      how many of them (1)
#   SLICE      in place of both, the name of a TPU slice, such as v5litepod-16
#   PROCESSES  processes, each with its own GPU if there are more than one (1)
#   HOURS      stop after so many hours, with everything saved (no limit)
#   MFU        assumed share of the chips' peak, for the cost (0.4)
#   RESTARTS   how often it goes on after exit code 75 (100)
#   PYTHON     the interpreter (.venv/bin/python, which `bash launch/env.sh` makes)
#
# SIGTERM saves and ends with 75, Ctrl-C with 130; the same command goes on. If the training process alone gets SIGTERM,
# it saves and is started again here.
set -euo pipefail
source "$(dirname "$0")/common.sh"
begin "$@"
need CONFIG WORKDIR
CHIP=${CHIP:-cpu} CHIPS=${CHIPS:-1} PROCESSES=${PROCESSES:-1}
number CHIPS PROCESSES
cost --chip="$CHIP" --chips="$CHIPS" ${SLICE:+--slice="$SLICE"}
train=("$PYTHON" -m nca_jax train --config="$CONFIG" --workdir="$WORKDIR" "${changes[@]+"${changes[@]}"}")
[ -z "$HOURS" ] || train=(timeout --signal=TERM --kill-after=600 "${HOURS}h" "${train[@]}")

port=$((20000 + RANDOM % 20000))
trap forward TERM INT
for ((attempt = 0; ; attempt++)); do
  if [ "$PROCESSES" = 1 ]; then
    words "${train[@]}"
    [ -n "$dry_run" ] || start "${train[@]}"
  fi
  for ((process = 0; PROCESSES > 1 && process < PROCESSES; process++)); do
    together=(env JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$PROCESSES" JAX_PROCESS_ID="$process"
      JAX_LOCAL_DEVICE_IDS="$process" "${train[@]}")
    words "${together[@]}"
    [ -n "$dry_run" ] || start "${together[@]}"
  done
  [ -z "$dry_run" ] || exit 0
  finish
  again "$code" "$attempt" || exit "$code"
  echo "interrupted, with everything saved: going on (restart $((attempt + 1)) of at most $RESTARTS)"
done
