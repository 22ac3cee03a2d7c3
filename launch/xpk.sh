#!/usr/bin/env bash
# Train on TPU slices of a GKE cluster with XPK; GKE starts a run again that was preempted, or asks for it.
#
#   launch/xpk.sh COMMAND [OPTIONS] [-- ARGUMENTS OF dim train]
#
# such as
#
#   launch/xpk.sh create --project my-project --zone us-east5-b --cluster tpus --type v6e-64 --name edit2 \
#     -- --config configs/edit_stage2.py --workdir gs://my-bucket/runs/edit2 --set sharding.fsdp=-1
#
#   cluster   make the cluster; once
#   create    start a run
#   list      what runs, and what became of it
#   delete    end a run
#
#   --project P --zone Z   where the cluster is, and who pays
#   --cluster C            its name
#   --name N               of the run, as XPK's workload
#   --type T               of a slice, such as v5litepod-16, v5p-128, v6e-64
#   --slices N             how many, joined by the data-centre network (1)
#   --spot | --reservation R   cluster: capacity that may be taken away, or that was reserved; on demand without either
#   --image I              create: a container image that has `dim` on PATH; without one this checkout is put on python:3.12 and installed
#                          at every start
#   --max-restarts N       create: how often the run may be started again (100)
#   --dry-run              only show the commands
#
# Behind exit code 75 (stopped, saved) and 70 (no step within train.watchdog_minutes), and where machines are lost, the same command goes on
# from its last checkpoint; another code ends the run. It has five minutes to save when its machines are taken away, less on spot ones.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

given=([slices]=1 [max-restarts]=100)
read_options "project zone cluster name type slices reservation image max-restarts" "spot" "$@"
((${#words[@]} == 1)) || fail "give one command: cluster, create, list or delete."
need project zone cluster
need_number slices max-restarts
[[ -z ${given[spot]-} || -z ${given[reservation]-} ]] || fail "--spot and --reservation exclude each other."
place=("--cluster=${given[cluster]}" "--project=${given[project]}" "--zone=${given[zone]}")

case ${words[0]} in
  cluster)
    need type
    capacity=(--on-demand)
    [[ -z ${given[spot]-} ]] || capacity=(--spot)
    [[ -z ${given[reservation]-} ]] || capacity=("--reservation=${given[reservation]}")
    run xpk cluster create "${place[@]}" "--tpu-type=${given[type]}" "--num-slices=${given[slices]}" "${capacity[@]}"
    ;;
  create)
    need type name
    need_run shared
    # exec: XPK sends SIGTERM to the shell that it starts the command in.
    command="exec dim train $(quoted "${arguments[@]}")"
    if [[ -n ${given[image]-} ]]; then
      image=("--docker-image=${given[image]}")
    else
      image=(--base-docker-image=python:3.12 "--script-dir=$root")
      command="pip install --quiet '.[tpu,train,data,gcs]' && $command"
    fi
    run xpk workload create "${place[@]}" "--workload=${given[name]}" "--tpu-type=${given[type]}" "--num-slices=${given[slices]}" \
      "${image[@]}" "--max-restarts=${given[max-restarts]}" "--restart-on-exit-codes=$HUNG,$STOPPED" \
      --termination-grace-period-seconds=300 "--command=$command"
    ;;
  list) run xpk workload list "${place[@]}" ;;
  delete)
    need name
    run xpk workload delete "${place[@]}" "--workload=${given[name]}" --force
    ;;
  *) fail "there is no command ${words[0]}: give cluster, create, list or delete." ;;
esac
