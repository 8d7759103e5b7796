#!/usr/bin/env bash
# Trains as a managed job of SkyPilot, on whatever cloud has the accelerators; it is recovered by itself.
#
#   CONFIG=experiments/nca_pretrain.py:size=1b6 WORKDIR=runs/nca NAME=nca ACCELERATORS=H100:8 BUCKET=my-bucket \
#     bash launch/skypilot.sh [--dry-run] [--config.a.b=c ...]
#
# Needed:
#   CONFIG     an experiment with its words, such as experiments/nca_pretrain.py:size=1b6,band=50+
#   WORKDIR    the folder of the run, inside runs/; the same one goes on where it stopped
#   NAME       of the job
#   ACCELERATORS   of a node, as SkyPilot names them: H100:8, A100-80GB:8, tpu-v6e-8, tpu-v5litepod-16, ...
# With defaults:
#   BUCKET     a bucket that becomes runs/, for one node (needed without VOLUME)
#   VOLUME     a volume of SkyPilot that becomes runs/; several nodes need one that they all see
#   NODES      how many nodes, each with one process (1)
#   SPOT       yes: on spot instances (no)
#   INFRA      where: gcp, aws/us-east-1, k8s, ... (the cheapest)
#   HOURS      stop after so many hours, with everything saved (no limit)
#   MFU        assumed share of the chips' peak, for the cost (0.4)
#   PYTHON     the interpreter here, for the cost (.venv/bin/python, which `bash launch/env.sh` makes)
#
# The working tree is what runs, less what git ignores. `sky jobs queue` shows the job, `sky jobs cancel` ends it.
set -euo pipefail
source "$(dirname "$0")/common.sh"
begin "$@"
need CONFIG WORKDIR NAME ACCELERATORS
NODES=${NODES:-1} BUCKET=${BUCKET:-} VOLUME=${VOLUME:-} SPOT=${SPOT:-no}
number NODES
[[ $WORKDIR == runs/?* ]] || stop "WORKDIR = $WORKDIR: must lie in runs/, which is the bucket or volume"
[ -n "$BUCKET$VOLUME" ] || stop "BUCKET is not set: a bucket that becomes runs/; or set VOLUME"
hosts=$NODES
case $ACCELERATORS in
  tpu-v4-8 | tpu-v5p-8 | tpu-v5litepod-[148] | tpu-v6e-[148]) ;;
  tpu-*) hosts=several ;;
esac
[ "$hosts" = 1 ] || [ -n "$VOLUME" ] || stop "VOLUME is not set: $hosts hosts need one that they all see"
case $ACCELERATORS in
  tpu-*)
    extra=tpu
    [ "$NODES" = 1 ] || stop "NODES = $NODES: must be 1 for a TPU slice, whose hosts come with it"
    cost --slice="${ACCELERATORS#tpu-}"
    ;;
  *:*)
    extra=cuda13 chip=${ACCELERATORS%%:*} each=${ACCELERATORS##*:}
    number each
    case $chip in
      A100) chip=A100-40 ;;
      A100-80GB) chip=A100-80 ;;
    esac
    cost --chip="$chip" --chips=$((NODES * each))
    ;;
  *) stop "ACCELERATORS = $ACCELERATORS: must be like H100:8 or tpu-v6e-8" ;;
esac

limit=${HOURS:+timeout --signal=TERM --kill-after=600 ${HOURS}h }
train=$(words .venv/bin/python -m nca_jax train --config="$CONFIG" --workdir="$WORKDIR" \
  "${changes[@]+"${changes[@]}"}")
if [ -n "$VOLUME" ]; then
  store=$(printf 'volumes:\n  /mnt/runs: %s' "$VOLUME")
else
  store=$(printf 'file_mounts:\n  /mnt/runs:\n    name: %s\n    mode: MOUNT_CACHED' "$BUCKET")
fi
group=
[ "$extra" != tpu ] || group="export NCA_CLUSTER=auto
  "
[ "$extra" != cuda13 ] || group="export JAX_PLATFORMS=cuda,cpu
  " # so that a driver too old is an error, and not a run on the CPU
if [ "$extra" = cuda13 ] && [ "$NODES" -gt 1 ]; then
  group+="export JAX_COORDINATOR_ADDRESS=\"\$(echo \"\$SKYPILOT_NODE_IPS\" | head -n 1):12321\"
  export JAX_NUM_PROCESSES=\$SKYPILOT_NUM_NODES JAX_PROCESS_ID=\$SKYPILOT_NODE_RANK
  "
fi
task="name: $NAME
workdir: .
num_nodes: $NODES
resources:
  accelerators: $ACCELERATORS
  use_spot: $([ "$SPOT" = yes ] && echo true || echo false)
  job_recovery:
    max_restarts_on_errors: 0
    recover_on_exit_codes: [75]
$store
setup: |
  python3 -m pip install --quiet uv
  python3 -m uv venv --quiet --python 3.11 .venv
  python3 -m uv pip install --quiet -r launch/requirements.lock 'jax[$extra]'
  python3 -m uv pip install --quiet --no-deps --editable .
run: |
  ln -sfn /mnt/runs runs
  ${group}exec $limit$train"

if [ -n "$dry_run" ]; then
  printf '# runs/%s.yaml:\n%s\n' "$NAME" "$task"
else
  mkdir -p runs
  echo "$task" > "runs/$NAME.yaml"
fi
run sky jobs launch --yes --detach-run ${INFRA:+--infra="$INFRA"} "runs/$NAME.yaml"
