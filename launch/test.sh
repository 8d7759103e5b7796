#!/usr/bin/env bash
# Lint, format and tests on eight virtual devices.   bash launch/test.sh [full | pytest arguments]
# `full` runs the slow proofs: both recipes' stages, published splits, a study killed in every stage, 20,000 trajectories.
set -euo pipefail
source "$(dirname "$0")/env.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ "${1:-}" = full ]; then
  exec .venv/bin/python -m pytest -m full "${@:2}"
fi
exec .venv/bin/python -m pytest -m 'not full' -n 2 --dist loadfile "$@"
