#!/bin/sh
# Measures auxseg on a GPU in nine minutes: sh experiments/speed/gpu.sh [--tiny] [--out=gpu.json]
# Needs jax, flax, optax, orbax, numpy and torch, and no network. What it does stands in gpu.py beside it.
set -e
cd "$(dirname "$0")/../.."
PYTHONPATH=. exec "${PYTHON:-python3}" -m experiments.speed.gpu "$@"
