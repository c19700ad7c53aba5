#!/usr/bin/env bash
# Convert a tiny checkpoint, with all set-up, on a machine that has Python 3.10 or newer and pip.
#
#   bash examples/quickstart.sh
#
# Makes .venv, tiny-checkpoint/ (random weights as Meta would store them) and tiny-checkpoint-hf/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/environment.sh

prepare .venv tests/constraints-transformers5.txt

rm -rf tiny-checkpoint tiny-checkpoint-hf
.venv/bin/python examples/make_tiny_checkpoint.py tiny-checkpoint --n-kv-heads 4 --infill
.venv/bin/codellama-convert --input_dir tiny-checkpoint --model_size 7B

echo "tiny-checkpoint-hf:"
ls -l tiny-checkpoint-hf
