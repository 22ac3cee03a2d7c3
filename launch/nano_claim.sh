#!/usr/bin/env bash
# The laboratory of the claim: does a blueprint beat the bare instruction at equal compute? Trains the edit runs of configs/nano_claim.py
# for every seed, from one nano model that paints from text, measures each, and writes the table of what there is: RUNS/claim.md and
# RUNS/claim.json. A second call goes on where the first one stopped. docs/nano.md says what the runs are.
#
#   launch/nano_claim.sh [OPTIONS] DATA RUNS [KEY=VALUE ...]     such as: launch/nano_claim.sh --per-gpu 2 data/emoji runs/claim
#
#   --steps N         of a stage (3000); other numbers belong into other RUNS
#   --seeds "A B C"   seeds of the runs (0 1 2)
#   --base MODEL      begin with this checkpoint, instead of training one that paints from text
#   --base-steps N    of that training (3000)
#   --written         one more arm, trained on blueprints that the encoder writes for the training pairs
#   --gpus N          GPUs to use (all)
#   --per-gpu M       runs at once on each (1)
#   --time-limit S    seconds after which what runs is stopped, and the table written
#   --dry-run         only show the commands
set -euo pipefail

# shellcheck source=launch/nano_runs.sh
source "$(dirname "${BASH_SOURCE[0]}")/nano_runs.sh"

given=([steps]=3000 [base-steps]=3000 [seeds]="0 1 2" [per-gpu]=1)
open_runs "base base-steps" "written" "base-steps" "$@"
base=${given[base]-$runs/t2i/model}
base_workers=$((1 + (cores < 48 ? cores / 2 : 24)))  # the first run is alone

edit() {  # SEED NAME STEPS FROM TEXT: a run of configs/nano_claim.py
  local seed=$1 needs=("$4") source=$prepared lengths="(88, 240)"
  # A second stage has a seed of its own, or it would see the batches, the noise and the times of the first one again.
  if [[ $2 == stage2* ]]; then seed=$((1000 + seed)); fi
  if [[ $2 == stage2_written ]]; then
    source=$runs/prepared needs+=("$runs/prepared/README.md") lengths="(88, 240, 288)"  # of what it writes, a few are longer
  fi
  if [[ $5 == instruction ]]; then lengths="(88,)"; fi  # one bucket: no tokens need to be counted
  train nano_claim "$runs/seed$1/$2" "$3" "data.source=$source" "seed=$seed" "init.sana=$4" "init.connector=$4" "data.text=$5" \
    "data.lengths=$lengths" "data.workers=$workers"
}

measure() {  # SEED NAME REPORT [OPTION ...]
  evaluate "$runs/seed$1/$2/model" "$runs/seed$1/$3.json" "${@:4}"
}

jobs() {
  local steps=${given[steps]} needs=() seed name stage1
  # Measured as soon as there is a model, so that a time limit leaves a table.
  for seed in "${seeds[@]}"; do
    for name in stage1 stage1_long stage2_instruction; do measure "$seed" "$name" "$name"; done
    measure "$seed" stage2_blueprint stage2_blueprint.oracle --text blueprint
    measure "$seed" stage2_blueprint stage2_blueprint.internal --designer local
    measure "$seed" stage2_blueprint stage2_blueprint.instruction
    if [[ -n ${given[written]-} ]]; then measure "$seed" stage2_written stage2_written.internal --designer local; fi
  done
  if [[ -z ${given[base]-} ]]; then
    train nano_t2i "$runs/t2i" "${given[base-steps]}" "data.source=$prepared" model.dtype=bfloat16 init.encoder=dim_jax/nano \
      init.autoencoder=dim_jax/nano "data.workers=$base_workers" train.show_every=0
  fi
  if [[ -n ${given[written]-} ]]; then
    quoted "$runs/written" -- python examples/written_blueprints.py "$data" "$runs/written"
    quoted "$runs/prepared/README.md" "$runs/written" -- dim prepare "$runs/written" "$runs/prepared" --tokenizer dim_jax/nano/tokenizer
  fi
  for seed in "${seeds[@]}"; do edit "$seed" stage1 "$steps" "$base" instruction; done
  for seed in "${seeds[@]}"; do
    stage1=$runs/seed$seed/stage1/model
    edit "$seed" stage1_long $((2 * steps)) "$base" instruction
    edit "$seed" stage2_instruction "$steps" "$stage1" instruction
    edit "$seed" stage2_blueprint "$steps" "$stage1" blueprint
    if [[ -n ${given[written]-} ]]; then edit "$seed" stage2_written "$steps" "$stage1" blueprint; fi
  done
}

dry || [[ -z ${given[base]-} || -e $base ]] || fail "--base $base: there is no such checkpoint."
run_jobs python benchmarks/nano_claim.py "$runs"
