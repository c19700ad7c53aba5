#!/usr/bin/env bash
# Convert every Meta checkpoint below a folder, each to a folder beside it with -hf added.
#
#   bash examples/batch_convert.sh FOLDER [OPTION...]
#
# Options go to codellama-convert, for example --dtype float16 --verify. One that fails does not stop
# the others. Run it again to go on: what is finished is left alone, what was interrupted goes on
# where it stopped. Ends with a table, and with exit status 1 if any failed.
set -euo pipefail

if (($# == 0)) || [[ $1 == -* ]]; then
  echo "Usage: bash examples/batch_convert.sh FOLDER [OPTION...]" >&2
  exit 2
fi
root=${1%/}
shift
if [[ ! -d $root ]]; then
  echo "Error: $root: no such folder" >&2
  exit 2
fi
if ! command -v codellama-convert >/dev/null; then
  echo "Error: no codellama-convert on PATH; pip install it, or activate its environment" >&2
  exit 2
fi

# A checkpoint has both files; one without params.json is named by its first rank, and will fail.
checkpoints=()
while IFS= read -r -d '' path; do
  folder=$(dirname "$path")
  if [[ $(basename "$path") == params.json || ! -e $folder/params.json ]]; then
    checkpoints+=("$folder")
  fi
done < <(find "$root" ! -type d \( -name params.json -o -name consolidated.00.pth \) -print0 | sort -z)
if ((${#checkpoints[@]} == 0)); then
  echo "Error: $root: no checkpoint (params.json, consolidated.00.pth) in it or below" >&2
  exit 1
fi

table=()
failed=0 stopped=0
for folder in "${checkpoints[@]}"; do
  output=$folder-hf
  began=$SECONDS status=0
  # What a loader begins with is published last: where it stands, the model is whole.
  if [[ " $* " != *" --overwrite "* ]] &&
    [[ -e $output/model.safetensors || -e $output/model.safetensors.index.json ]]; then
    result="there already"
  else
    echo "== $folder"
    codellama-convert --input_dir "$folder" --output_dir "$output" "$@" || status=$?
    if ((status == 0)); then
      result=converted
    elif ((status > 128)); then
      result="interrupted"
    else
      result="failed ($status)"
    fi
  fi
  table+=("$(printf '%-14s%8s  %s' "$result" "$((SECONDS - began))" "$folder")")
  if ((status > 128)); then
    stopped=$status
    break
  elif ((status > 0)); then
    failed=$((failed + 1))
  fi
done

printf '\n%-14s%8s  %s\n' result seconds checkpoint
printf '%s\n' "${table[@]}"
if ((stopped > 0)); then exit "$stopped"; fi
if ((failed > 0)); then
  echo "Error: $failed of ${#checkpoints[@]} failed; their messages stand above" >&2
  exit 1
fi
