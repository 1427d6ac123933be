#!/usr/bin/env bash
# What slurm.sbatch runs in each task: slurm_task.sh NOTES COMMAND...; writes the command's status
# to NOTES/status.TASK, because srun tells only the highest of all. Not for hands.
set -euo pipefail
. "$(dirname "$0")/restart.sh"

notes=$1
shift
# SLURM signals every process of a step: the command gets its own TERM
trap : TERM
"$@" &
child=$!
wait_child
printf '%s\n' "$child_status" >"$notes/status.${SLURM_PROCID:-0}"
# a task that saved and left must not make srun kill its peers, as --kill-on-bad-exit would
if [ "$child_status" = 143 ]; then
  exit 0
fi
exit "$child_status"
