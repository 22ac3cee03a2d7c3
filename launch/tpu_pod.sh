#!/usr/bin/env bash
# Train on a TPU slice of Google Cloud, or on several, as a queued resource; a spot slice that is taken away is made anew.
#
#   launch/tpu_pod.sh COMMAND [OPTIONS] [-- ARGUMENTS OF dim train]
#
# such as
#
#   launch/tpu_pod.sh run --project my-project --zone us-west4-a --name edit2 --type v5litepod-16 --runtime v2-alpha-tpuv5-lite --spot \
#     -- --config configs/edit_stage2.py --workdir gs://my-bucket/runs/edit2 --set sharding.fsdp=-1
#
#   run       all of it: create, wait, install, train until the run is done, delete; the same command takes up what is there
#   create    ask for the slices, and wait until they are there
#   install   put the last commit of this checkout on every worker, in an environment of its own
#   train     start `dim train` on every worker, and wait for its end
#   delete    give the slices back
#
#   --project P --zone Z   where the slices are, and who pays
#   --name N               of the queued resource and of its nodes
#   --type T               of a slice, such as v5litepod-16, v5p-128, v6e-64
#   --runtime R            software of its machines, such as v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e
#   --slices N             how many, joined by the data-centre network (1)
#   --spot | --reserved    capacity that may be taken away, or that was reserved; on demand without either
#   --service-account A    as whom the machines reach the bucket; else the project's default one
#   --python V             version of Python that the workers get (3.12)
#   --keep                 run: do not delete the slices when the run is done
#   --max-restarts N       run: how often the run may be started again (100)
#   --poll S, --settle S   seconds between two looks at the state (30); how long a lost slice may take to be called so (120)
#   --dry-run              only show the commands
#
# Behind exit code 75 (stopped, saved), 70 (no step within train.watchdog_minutes) and a kill the same command goes on from its last
# checkpoint; a slice that was taken away is deleted, created and installed again before. Any other code ends this script with it, and leaves the slices.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

given=([slices]=1 [python]=3.12 [max-restarts]=100 [poll]=30 [settle]=120)
read_options "project zone name type runtime slices service-account python max-restarts poll settle" "spot reserved keep" "$@"
((${#words[@]} == 1)) || fail "give one command: run, create, install, train or delete."
need project zone name
need_number slices max-restarts poll settle
case ${words[0]} in
  run) need type runtime && need_run shared ;;
  create) need type runtime ;;
  train) need_run shared ;;
  install | delete) ;;
  *) fail "there is no command ${words[0]}: give run, create, install, train or delete." ;;
esac
[[ -z ${given[spot]-} || -z ${given[reserved]-} ]] || fail "--spot and --reserved exclude each other."

name=${given[name]}
queued=(gcloud compute tpus queued-resources)
place=("--project=${given[project]}" "--zone=${given[zone]}")
describe=("${queued[@]}" describe "$name" "${place[@]}" "--format=value(state.state)")

# ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; or nothing where there is no such resource.
state() { "${describe[@]}" 2>/dev/null || true; }

ask() {
  local options=("--accelerator-type=${given[type]}" "--runtime-version=${given[runtime]}")
  if ((given[slices] > 1)); then options+=("--node-count=${given[slices]}" "--node-prefix=$name"); else options+=("--node-id=$name"); fi
  [[ -z ${given[spot]-} ]] || options+=(--spot)
  [[ -z ${given[reserved]-} ]] || options+=(--reserved)
  [[ -z ${given[service-account]-} ]] || options+=("--service-account=${given[service-account]}")
  run "${queued[@]}" create "$name" "${place[@]}" "${options[@]}"
}

delete() { run "${queued[@]}" delete "$name" "${place[@]}" --force --quiet; }

# Until the slices are there; what was lost meanwhile, or before, is asked for again.
create() {
  if dry; then
    ask
    note "until it says ACTIVE, every ${given[poll]} seconds:"
    run "${describe[@]}"
    return
  fi
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      '') ask || exit ;;
      SUSPENDED) note "$name is $now" && { delete || exit; } ;;
      FAILED) "${queued[@]}" describe "$name" "${place[@]}" >&2 && fail "$name cannot be had (above). Delete it, and ask for something else." ;;
      *) note "$name is $now" ;;
    esac
    sleep "${given[poll]}"
  done
}

everywhere() { run "${queued[@]}" ssh "$name" "${place[@]}" --node=all --worker=all "--command=$1"; }

install() {
  local archive
  archive=${TMPDIR:-/tmp}/dim_jax.$name.tar.gz
  run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD &&
    run "${queued[@]}" scp "$archive" "$name:dim_jax.tar.gz" "${place[@]}" --node=all --worker=all &&
    everywhere "rm -rf dim_jax && mkdir dim_jax && tar -xzf dim_jax.tar.gz -C dim_jax && pip install --quiet --user uv && \
python3 -m uv venv --quiet --python ${given[python]} dim_jax/.venv && \
python3 -m uv pip install --quiet --python dim_jax/.venv './dim_jax[tpu,train,data,gcs]'"
}

# The lock: where only the connection was lost, the run still goes on, and a second one waits for its end.
train() { everywhere "cd dim_jax && flock ../dim_jax.lock .venv/bin/dim train $(quoted "${arguments[@]}")"; }

# Whether the slices were taken away; it may take a while until Google Cloud says so.
lost() {
  local waited
  for ((waited = 0; waited <= given[settle]; waited += given[poll])); do
    [[ $(state) == ACTIVE ]] || return 0
    sleep "${given[poll]}"
  done
  return 1
}

run_all() {
  local code restarts installed=
  for ((restarts = 0; ; restarts++)); do
    code=0
    { [[ -n $installed ]] || { create && install && installed=1; }; } && train || code=$?
    if dry; then
      note "after exit code $HUNG or $STOPPED or a kill the last command again. If the slices were lost, this, and then all again:"
      note "$(delete)"
      note "when the run is done:"
    fi
    if ((code == 0)); then break; fi
    ((restarts < given[max-restarts])) || { note "started again $restarts times, which is enough" && exit "$code"; }
    if lost; then
      note "exit code $code, and the slices were lost: new ones go on from the last checkpoint"
      installed=
    elif goes_on "$code"; then # 255 is ssh, which lost the connection
      note "exit code $code: going on"
    else
      note "exit code $code: it would only fail again. The slices are still there, and cost; give them back with:"
      note "$(quoted "${queued[@]}" delete "$name" "${place[@]}" --force --quiet)"
      exit "$code"
    fi
  done
  [[ -n ${given[keep]-} ]] || delete
}

case ${words[0]} in
  run) run_all ;;
  *) "${words[0]}" ;;
esac
