#!/usr/bin/env bash
# Convert every Meta checkpoint below a folder, each to a folder beside it with -hf added.
#
#   bash examples/batch_convert.sh FOLDER [OPTION...]
#
# Options go to codellama-convert, for example --dtype float16 --verify. One that fails does not stop
# the others; Ctrl-C does. Run it again to resume: what is finished is left alone (--overwrite
# converts it again), what was interrupted continues where it stopped. Ends with a table, and with
# exit status 1 if any failed.
set -euo pipefail

usage="Usage: bash examples/batch_convert.sh FOLDER [OPTION of codellama-convert...]"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  echo "$usage"
  exit 0
elif (($# == 0)) || [[ $1 == -* ]]; then
  echo "$usage" >&2
  exit 2
fi
root=${1%/}
root=${root:-/}
shift

# A name may hold an escape sequence or a second line: what is not plain ASCII is printed as a word
# that a shell reads back.
shown() {
  local LC_ALL=C
  if [[ $1 == *[![:print:]]* ]]; then printf '%q' "$1"; else printf '%s' "$1"; fi
}

for option; do
  if [[ $option =~ ^--(in|out)put[_-]dir(=|$) ]]; then
    echo "Error: ${option%%=*} is set for every conversion here: the output lies beside the input" >&2
    exit 2
  fi
done
if [[ ! -d $root ]]; then
  echo "Error: $(shown "$root"): no such folder" >&2
  exit 2
fi
if ! command -v codellama-convert >/dev/null; then
  echo "Error: no codellama-convert on PATH; pip install it, or activate its environment" >&2
  exit 2
fi

# A checkpoint has both files; one without params.json is named by its first rank, and will fail.
checkpoints=()
while IFS= read -r -d '' path; do
  folder=${path%/*} # not dirname in $( ), which takes newlines off the end of a name
  folder=${folder:-/}
  if [[ ${path##*/} == params.json || ! -e $folder/params.json ]]; then
    # "." has no name to add -hf to.
    case $folder in
      . | .. | */. | */..)
        folder=$(CDPATH='' cd -- "$folder" && printf '%s.' "$PWD")
        folder=${folder%.}
        ;;
    esac
    checkpoints+=("$folder")
  fi
done < <(find -H "$root" ! -type d \( -name params.json -o -name consolidated.00.pth \) -print0 |
  sort -z)
if ((${#checkpoints[@]} == 0)); then
  echo "Error: $(shown "$root"): no checkpoint (params.json, consolidated.00.pth) in it or below" >&2
  exit 1
fi

# What a loader begins with is published last, and staged work goes away after it. A tokenizer alone
# has nothing for a loader of models; its record is enough.
last=("model.safetensors" "model.safetensors.index.json")
if [[ " $* " == *[\ =]tokenizer_only\ * ]]; then last=(conversion.json); fi
is_finished() {
  local name
  if [[ -e $1/.codellama-convert.partial ]]; then return 1; fi
  for name in "${last[@]}"; do
    if [[ -e $1/$name ]]; then return; fi
  done
  return 1
}

table=()
failed=0 stopped=0
# Without it, a shell that sees Ctrl-C just after the program has ended dies of it, tableless.
trap 'stopped=130' INT
for folder in "${checkpoints[@]}"; do
  began=$SECONDS status=0
  if ((stopped > 0)); then
    result="not begun"
  elif [[ " $* " != *" --overwrite "* ]] && is_finished "$folder-hf"; then
    result="there already"
  else
    echo "== $(shown "$folder")"
    codellama-convert --input_dir "$folder" --output_dir "$folder-hf" "$@" || status=$?
    case $status in
      0) result=converted ;;
      # SIGHUP, SIGINT, SIGTERM: somebody wants all of it to stop. A crash stops only itself.
      129 | 130 | 143) result=interrupted stopped=$status ;;
      *) result="failed ($status)" failed=$((failed + 1)) ;;
    esac
  fi
  table+=("$(printf '%-14s%8s  %s' "$result" "$((SECONDS - began))" "$(shown "$folder")")")
done

printf '\n%-14s%8s  %s\n' result seconds checkpoint
printf '%s\n' "${table[@]}"
if ((stopped > 0)); then exit "$stopped"; fi
if ((failed > 0)); then
  echo "Error: $failed of ${#checkpoints[@]} failed; their messages are above" >&2
  exit 1
fi
