#!/usr/bin/env bash
# The main job: pre-pre-train on automata, transfer to a model of Python code, compare with training from scratch.
#   bash launch/quickstart.sh          the study, with its report in runs/quickstart/report
#   bash launch/quickstart.sh reasoning   then tunes each arm's models on arithmetic: how many problems do they solve?
#   bash launch/quickstart.sh smoke    every part in a few minutes; its numbers mean nothing
#   bash launch/quickstart.sh grid     the search that settled each arm's learning rate and tables, in an hour
# Stop it whenever you like: the same command goes on from there.
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec .venv/bin/python -m nca_jax study experiments/quickstart.py "$@"
