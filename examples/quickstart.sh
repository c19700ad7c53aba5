#!/usr/bin/env bash
# Convert the tiny Code Llama that lies here, verify it, and let it fill in a function: with all
# set-up, on a machine that has Python 3.10 or newer and pip.
#
#   bash examples/quickstart.sh
#
# Makes .venv and examples/tiny-codellama-hf/.
set -euo pipefail
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/environment.sh

activate .venv tests/constraints-transformers5.txt examples

show() {
  echo "\$ $*"
  "$@"
  echo
}

show codellama-convert --input_dir examples/tiny-codellama --overwrite
show codellama-convert verify --input_dir examples/tiny-codellama \
  --output_dir examples/tiny-codellama-hf
show python examples/infill.py examples/tiny-codellama-hf
