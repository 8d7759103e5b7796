#!/usr/bin/env bash
# Lint, format and tests on eight virtual devices.   bash launch/test.sh [full | pytest arguments]
# `full` runs the slow proofs: both recipes' stages, published splits, a study killed in every stage, 20,000 trajectories,
# four processes, PyTorch, lm-eval and a TPU's compiler as oracles (launch/oracle.lock, installed the first time: 1.5 GB).
set -euo pipefail
source "$(dirname "$0")/env.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ "${1:-}" = full ]; then
  if ! cmp -s launch/oracle.lock .venv/oracle.lock; then
    # The locks are whole. A resolver would refuse this pair: an old bound of pytablewriter's keeps dateutil below 3.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r launch/oracle.lock
    cp launch/oracle.lock .venv/oracle.lock
  fi
  exec .venv/bin/python -m pytest -m full "${@:2}"
fi
# Most of the time went into compiling tiny programs once, which is faster without optimisation and without the newer
# emitters of fused loops; `full` compiles as users do.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
  --xla_cpu_use_fusion_emitters=false"
exec .venv/bin/python -m pytest -m 'not full' -n 2 --dist loadfile "$@"
