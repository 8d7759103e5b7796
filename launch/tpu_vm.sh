#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs: makes the slice, installs the code on all of its workers, trains, and deletes it.
#
#   CONFIG=experiments/nca_pretrain.py:size=1b6 WORKDIR=runs/nca NAME=nca TYPE=v5litepod-16 PROJECT=my-project \
#     ZONE=us-west4-a NFS=10.0.0.2:/share bash launch/tpu_vm.sh [--dry-run] [--config.a.b=c ...]
#
# Needed:
#   CONFIG     an experiment with its words, such as experiments/nca_pretrain.py:size=1b6,band=50+
#   WORKDIR    the folder of the run, inside runs/; the same one goes on where it stopped
#   NAME       of the slice, which is made if it isn't there
#   TYPE       of the slice: v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   PROJECT    the project of Google Cloud
#   ZONE       where the slice is, such as us-west4-a
#   NFS        what all workers mount as runs/, such as a Filestore's 10.0.0.2:/share; it outlives the slice
# With defaults:
#   RUNTIME    the workers' system (tpu-ubuntu2204-base, or v2-alpha-tpuv5, ...-tpuv5-lite or ...-tpuv6e by TYPE)
#   CAPACITY   on-demand, spot or reserved (on-demand)
#   HOURS      stop after so many hours, with everything saved (no limit)
#   KEEP       yes: leave the slice there at the end, at its cost (no)
#   MFU        assumed share of the chips' peak, for the cost (0.4)
#   RESTARTS   how often it goes on after exit code 75, or makes a lost slice again (100)
#   PYTHON     the interpreter here, for the cost (.venv/bin/python, which `bash launch/env.sh` makes)
#
# What is committed is what runs. The workers learn from the slice who they are. Ctrl-C leaves
# the slice and the training there; the same command stops that training, with everything saved, and goes on from it.
set -euo pipefail
source "$(dirname "$0")/common.sh"
begin "$@"
need CONFIG WORKDIR NAME TYPE PROJECT ZONE NFS
[[ $WORKDIR == runs/?* ]] || stop "WORKDIR = $WORKDIR: must lie in runs/, where the workers mount NFS"
case ${CAPACITY:=on-demand} in
  on-demand) capacity= ;;
  spot | reserved) capacity=--$CAPACITY ;;
  *) stop "CAPACITY = $CAPACITY: must be on-demand, spot or reserved" ;;
esac
case $TYPE in
  v5litepod-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite} ;;
  v5p-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv5} ;;
  v6e-*) RUNTIME=${RUNTIME:-v2-alpha-tpuv6e} ;;
  *) RUNTIME=${RUNTIME:-tpu-ubuntu2204-base} ;;
esac
cost --slice="$TYPE"

place=(--project="$PROJECT" --zone="$ZONE")
tpu=(gcloud compute tpus tpu-vm)
bundle=runs/$NAME.bundle
install="set -e
if [ -e train.pid ] && kill -TERM \$(cat train.pid) 2>/dev/null; then tail --pid=\$(cat train.pid) -f /dev/null; fi
sudo mkdir -p /mnt/runs
mountpoint -q /mnt/runs || { sudo apt-get install -qq -y nfs-common; sudo mount -t nfs $(words "$NFS") /mnt/runs; }
rm -rf nca_jax
git clone --quiet nca_jax.bundle nca_jax
ln -s /mnt/runs nca_jax/runs
cd nca_jax
python3 -m pip install --quiet --user uv
uv=\$HOME/.local/bin/uv
\$uv venv --quiet --python 3.11 .venv
\$uv pip install --quiet -r launch/requirements.lock 'jax[tpu]'
\$uv pip install --quiet --no-deps --editable ."
train="cd nca_jax
nohup env NCA_CLUSTER=auto $(words CONFIG="$CONFIG" WORKDIR="$WORKDIR" SLICE="$TYPE" HOURS="$HOURS" MFU="$MFU" RESTARTS="$RESTARTS") \
bash launch/local.sh $(words "${changes[@]+"${changes[@]}"}") > ../train.log 2>&1 &
echo \$! > ../train.pid
tail --pid=\$! -n +1 -f ../train.log
wait \$!"

state() {
  "${tpu[@]}" describe "$NAME" "${place[@]}" --format='value(state)' 2>/dev/null || echo MISSING
}

make_slice() {
  run "${tpu[@]}" create "$NAME" "${place[@]}" --accelerator-type="$TYPE" --version="$RUNTIME" ${capacity:+"$capacity"}
}

delete_slice() {
  run "${tpu[@]}" delete "$NAME" "${place[@]}" --quiet
}

on_workers() {
  run "${tpu[@]}" ssh "$NAME" "${place[@]}" --worker=all --command="$1"
}

[ -n "$dry_run" ] || [ -z "$(git status --porcelain)" ] || echo "note: what isn't committed stays here"
run mkdir -p runs
run git bundle create --quiet "$bundle" HEAD
for ((attempt = 0; ; attempt++)); do
  found=MISSING
  [ -n "$dry_run" ] || found=$(state)
  while [ "$found" != READY ]; do
    [ "$found" = MISSING ] || delete_slice || true # one that is just being made or deleted can't be
    if make_slice; then break; fi
    [ "$attempt" -gt 0 ] || exit 1
    echo "no slice to be had: trying again in 5 minutes"
    sleep 300
    found=$(state)
  done
  code=0
  run "${tpu[@]}" scp "$bundle" "$NAME:nca_jax.bundle" "${place[@]}" --worker=all || code=255
  [ "$code" != 0 ] || on_workers "$install" || code=$?
  [ "$code" != 0 ] || on_workers "$train" || code=$?
  [ -z "$dry_run" ] || break
  # What is worth going on after: 75, everything is saved; 134, JAX missed a host at the start; 255, ssh lost its way
  # here, and the install stops what still trains there. Any other failure of a slice that is gone is the slice's.
  case $code in
    75) ;;
    134 | 255) sleep 30 ;;
    *) if [ "$code" = 0 ] || [ "$(state)" = READY ]; then break; fi ;;
  esac
  [ "$attempt" -lt "$RESTARTS" ] || break
  echo "interrupted: going on (restart $((attempt + 1)) of at most $RESTARTS)"
done
[ "${KEEP:-no}" = yes ] || delete_slice
exit "$code"
