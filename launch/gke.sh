#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster that xpk made: submits one workload, which restarts by itself.
#
#   CONFIG=experiments/nca_pretrain.py:size=1b6 WORKDIR=runs/nca NAME=nca TYPE=v5litepod-16 PROJECT=my-project \
#     ZONE=us-west4-a CLUSTER=my-cluster STORAGE=share MOUNT=/share bash launch/gke.sh [--dry-run] [--config.a.b=c ...]
#
# Needed:
#   CONFIG     an experiment with its words, such as experiments/nca_pretrain.py:size=1b6,band=50+
#   WORKDIR    the folder of the run, inside runs/; the same one goes on where it stopped
#   NAME       of the workload: lower case, digits and dashes; to start it again, `xpk workload delete` it first
#   TYPE       of the slice: v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   PROJECT    the project of Google Cloud
#   ZONE       where the cluster is, such as us-west4-a
#   CLUSTER    the cluster, which `xpk cluster create` has made
#   STORAGE    what all pods share, a Filestore's name in `xpk storage list`
#   MOUNT      where it is mounted in the pods: it becomes runs/
# With defaults:
#   CAPACITY   spot, on-demand or flex, where the cluster provisions by itself (as the cluster says)
#   IMAGE      the image that the code is put on, with Python 3.11 or later and git (python:3.11)
#   HOURS      stop after so many hours, with everything saved (no limit)
#   MFU        assumed share of the chips' peak, for the cost (0.4)
#   RESTARTS   how often it goes on after exit code 75 or a lost node (100)
#   PYTHON     the interpreter here, for the cost (.venv/bin/python, which `bash launch/env.sh` makes)
#
# What is committed is what runs. `xpk workload list` shows it, `xpk workload delete` ends it, with everything saved.
set -euo pipefail
source "$(dirname "$0")/common.sh"
begin "$@"
need CONFIG WORKDIR NAME TYPE PROJECT ZONE CLUSTER STORAGE MOUNT
[[ $WORKDIR == runs/?* ]] || stop "WORKDIR = $WORKDIR: must lie in runs/, which is MOUNT in the pods"
case ${CAPACITY:=} in
  '' | spot | on-demand | flex) ;;
  *) stop "CAPACITY = $CAPACITY: must be spot, on-demand or flex" ;;
esac
IMAGE=${IMAGE:-python:3.11}
cost --slice="$TYPE"

# JAX learns from the cluster who its pods are. In each the training replaces the shell, so that SIGTERM reaches it.
limit=${HOURS:+timeout --signal=TERM --kill-after=600 ${HOURS}h }
command="ln -sfn $(words "$MOUNT") runs \
&& python -m pip install --quiet -r launch/requirements.lock 'jax[tpu]' \
&& python -m pip install --quiet --no-deps --editable . \
&& export NCA_CLUSTER=auto && exec ${limit}$(words python -m nca_jax train --config="$CONFIG" --workdir="$WORKDIR" "${changes[@]+"${changes[@]}"}")"

bundle=runs/$NAME.bundle folder=runs/$NAME.code
[ -n "$dry_run" ] || [ -z "$(git status --porcelain)" ] || echo "note: what isn't committed stays here"
run mkdir -p runs
run git bundle create --quiet "$bundle" HEAD
run rm -rf "$folder"
run git clone --quiet "$bundle" "$folder"
run xpk workload create --workload="$NAME" --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --tpu-type="$TYPE" \
  ${CAPACITY:+--"$CAPACITY"} --storage="$STORAGE" --base-docker-image="$IMAGE" --script-dir="$folder" \
  --max-restarts="$RESTARTS" --restart-on-exit-codes=75 --termination-grace-period-seconds=180 --command="$command"
