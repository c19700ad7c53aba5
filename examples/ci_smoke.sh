#!/usr/bin/env bash
# The smoke conversion that a CI would run: make a tiny random checkpoint, convert it, verify it,
# load it in transformers and generate a few tokens. Takes seconds, downloads nothing but packages.
#
#   bash examples/ci_smoke.sh [FOLDER]
#
# FOLDER gets tiny-checkpoint/ and tiny-checkpoint-hf/; without one, they go into a temporary folder
# that is removed. Uses the codellama-convert and python on PATH, and says what that python lacks;
# where one of them is not there, makes .venv.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if ! command -v codellama-convert >/dev/null || ! command -v python >/dev/null; then
  source "$root/tests/environment.sh"
  folder_before=$PWD
  cd "$root"
  activate .venv tests/constraints-transformers5.txt examples
  cd "$folder_before"
fi
# Before anything is made; not imported, as that takes seconds.
missing=$(python -c '
from importlib.util import find_spec
needed = ("click", "sentencepiece", "torch", "transformers")
print(*(name for name in needed if find_spec(name) is None), end="")')
if [[ -n $missing ]]; then
  echo "Error: the python on PATH lacks $missing; python -m pip install $missing" >&2
  exit 1
fi
if (($# > 0)); then
  work=$1
  mkdir -p "$work"
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi

rm -rf "$work/tiny-checkpoint" "$work/tiny-checkpoint-hf"
python "$root/examples/make_tiny_checkpoint.py" "$work/tiny-checkpoint" --n_kv_heads 4 --infill
codellama-convert --input_dir "$work/tiny-checkpoint" --model_size 7B
codellama-convert verify --input_dir "$work/tiny-checkpoint" --output_dir "$work/tiny-checkpoint-hf"
python - "$work/tiny-checkpoint-hf" <<'PYTHON'
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.disable_progress_bar()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer("def greatest_common_divisor(", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
new = output.shape[1] - inputs["input_ids"].shape[1]
assert new == 8, new
print(f"transformers loaded {model.num_parameters():,} parameters and generated {new} tokens")
PYTHON
