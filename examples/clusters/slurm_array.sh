#!/usr/bin/env bash
# Convert one checkpoint on several machines of a Slurm cluster, as a job array.
#
#   bash examples/clusters/slurm_array.sh PARTS IN OUT [OPTION of codellama-convert...]
#
# IN and OUT lie on a file system that all machines share. Options of sbatch, such as a partition,
# are taken from its own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, ...). The second job begins when
# the array has ended, however it did: it writes what is missing, and publishes. Submit the same again
# to resume. --verify, --sha256 and --model_card take effect in the second; --restart is refused by the
# parts: give it to the command without --part.
set -euo pipefail

usage="Usage: bash examples/clusters/slurm_array.sh PARTS IN OUT [OPTION of codellama-convert...]"
case ${1:-} in
  part) # a task of the array
    n_parts=$2
    shift 2
    exec codellama-convert "$@" --part "$SLURM_ARRAY_TASK_ID/$n_parts"
    ;;
  finish)
    shift
    exec codellama-convert "$@"
    ;;
  [1-9]*) ;;
  *)
    echo "$usage" >&2
    exit 2
    ;;
esac
if (($# < 3)); then
  echo "$usage" >&2
  exit 2
fi
n_parts=$1
shift

array=$(sbatch --parsable --job-name=convert-parts --array="1-$n_parts" --cpus-per-task=4 --mem=2G \
  "${BASH_SOURCE[0]}" part "$n_parts" "$@")
array=${array%%;*} # a cluster's name may follow
last=$(sbatch --parsable --job-name=convert-finish --dependency="afterany:$array" \
  --cpus-per-task=4 --mem=2G "${BASH_SOURCE[0]}" finish "$@")
echo "submitted $array ($n_parts parts), and ${last%%;*} to finish after them"
