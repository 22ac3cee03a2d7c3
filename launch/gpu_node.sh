#!/usr/bin/env bash
# Train on all GPUs of this machine, in one process; start again where the run asks for it.
#
#   launch/gpu_node.sh [OPTIONS] -- --config CONFIG --workdir WORKDIR [OTHER ARGUMENTS OF dim train]
#
# such as
#
#   launch/gpu_node.sh -- --config configs/edit_stage2.py --workdir runs/edit_stage2 --set sharding.fsdp=-1
#
#   --max-restarts N   how often the run may be started again (100)
#   --dry-run          only show the commands
#
# `dim train` is started again after exit code 75 (stopped, saved), 70 (no step within train.watchdog_minutes) and a kill, and goes on from
# its last checkpoint; any other code ends this script with it. SIGTERM and SIGINT are passed on, and then nothing is started again.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

given[max-restarts]=100
read_options "max-restarts" "" "$@"
((${#words[@]} == 0)) || fail "${words[*]}: arguments of dim train stand after --."
need_number max-restarts
need_run

asked=
trap 'asked=1 && kill -TERM "$child" 2>/dev/null || true' TERM INT

# In the background, since bash handles a signal only between two commands of its own; a signal ends `wait`, so wait again.
train() {
  dim train "${arguments[@]}" &
  child=$!
  while :; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
}

quoted dim train "${arguments[@]}"
if dry; then
  note "again after exit code $HUNG or $STOPPED or a kill, up to ${given[max-restarts]} times"
  exit
fi
for ((restarts = 0; ; restarts++)); do
  train
  if ! goes_on "$code" || [[ -n $asked ]]; then exit "$code"; fi
  ((restarts < given[max-restarts])) || break
  note "exit code $code: going on"
done
note "started again ${given[max-restarts]} times, which is enough"
exit "$code"
