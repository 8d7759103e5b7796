#!/usr/bin/env bash
# Lint, format and tests on eight virtual devices.   bash launch/test.sh [full | pytest arguments]
# `full` runs the slow proofs: every experiment's smoke run, published data splits, a study killed in every stage.
set -euo pipefail
source "$(dirname "$0")/env.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
if [ "${1:-}" = full ]; then
  exec .venv/bin/python -m pytest -m full "${@:2}"
fi
exec .venv/bin/python -m pytest -m 'not full' -n 2 --dist loadfile "$@"
