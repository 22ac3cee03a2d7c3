#!/usr/bin/env bash
# The ladder of nano edit runs: which known tricks make the painter learn faster? Trains SANA and connector anew on edits, over the bundled
# encoder and autoencoder, once for every arm and seed; measures each run at several steps on held-out pairs that are for choosing; and
# writes the table of what there is: RUNS/ladder.md and RUNS/ladder.json. A second call goes on where the first one stopped.
#
#   launch/nano_ladder.sh [OPTIONS] DATA RUNS [KEY=VALUE ...]     such as: launch/nano_ladder.sh --per-gpu 2 data/emoji runs/ladder
#
#   --arms "A B+C"    of those below; B+C has the keys of both (all of them, one by one)
#   --steps N         of a run (3000); other numbers belong into other RUNS
#   --every M         steps from one measurement to the next (1000)
#   --pairs P         held-out pairs of each rule (24)
#   --seeds "A B C"   seeds of the runs (0 1 2)
#   --gpus N          GPUs to use (all)
#   --per-gpu M       runs at once on each (1)
#   --time-limit S    seconds after which what runs is stopped, and the table written
#   --dry-run         only show the commands
#
# KEY=VALUE changes the config of all runs, but for the keys of their arms: optim.name=muon puts the tricks on Muon.
#
#   adamw         the baseline, which the others are compared with
#   muon          its momentum made orthogonal
#   contrastive   velocities of other rows are kept away from
#   repa          hidden states learn to resemble what the encoder sees
#   uniform       times drawn alike
#   narrow, wide  times drawn more often from the middle, or less often
#   noisy         times drawn more often near the noise
#   moments       first moments in bfloat16
#   ema           shorter averages
#   small, large  SANA half as wide, or twice
#   slow, fast    half the learning rate, or twice
#   mup           matrices of other widths than the preset's learn at a rate of their own
#   batch         twice as many rows in a step
set -euo pipefail

# shellcheck source=launch/nano_runs.sh
source "$(dirname "${BASH_SOURCE[0]}")/nano_runs.sh"

given=([steps]=3000 [every]=1000 [pairs]=24 [seeds]="0 1 2" [per-gpu]=1 [arms]="adamw muon contrastive repa uniform narrow wide noisy moments ema")
open_runs "every pairs arms" "" "every pairs" "$@"
read -ra arms <<<"${given[arms]}"
((${#arms[@]})) && [[ -z $(printf '%s\n' "${arms[@]}" | sort | uniq -d) ]] || fail "--arms ${given[arms]}: name each arm once."

# The keys that a trick changes, one a line.
keys() {
  case $1 in
    adamw) echo optim.name=adamw ;;
    muon) echo optim.name=muon ;;
    contrastive) echo flow.contrastive=0.05 ;;
    repa) printf '%s\n' repa.weight=0.5 "trainable=('connector', 'sana', 'repa')" ;;
    uniform) echo flow.draw=uniform ;;
    narrow) echo flow.std=0.7 ;;
    wide) echo flow.std=1.5 ;;
    noisy) echo flow.shift=2.0 ;;
    moments) echo optim.mu_dtype=bfloat16 ;;
    ema) echo optim.ema_decay=0.998 ;;
    small) echo model.width=128 ;;
    large) echo model.width=512 ;;
    slow) echo optim.learning_rate=5e-4 ;;
    fast) echo optim.learning_rate=2e-3 ;;
    mup) echo optim.mup_base_width=256 ;;
    batch) echo data.batch_size=512 ;;
    *) fail "--arms: there is no $1." ;;
  esac
}

for arm in "${arms[@]}"; do
  for trick in ${arm//+/ }; do keys "$trick" >/dev/null; done
done

jobs() {
  local steps=${given[steps]} every=${given[every]} measured=(--holdout selection --pairs-per-rule "${given[pairs]}")
  local needs=() last=() seed arm trick run step
  # Measured as soon as there is a state or a model, so that a time limit leaves a table.
  for seed in "${seeds[@]}"; do
    for arm in "${arms[@]}"; do
      run=$runs/seed$seed/$arm
      evaluate "$run/model" "$run.json" "${measured[@]}"
      for ((step = every; step < steps; step += every)); do
        quoted "$run@$step" "$run/checkpoints/$step" -- dim convert "$run/checkpoints/$step" "$run@$step" --to orbax
        evaluate "$run@$step" "$run@$step.json" "${measured[@]}"
      done
    done
  done
  for seed in "${seeds[@]}"; do
    for arm in "${arms[@]}"; do
      last=()
      for trick in ${arm//+/ }; do mapfile -t -O "${#last[@]}" last < <(keys "$trick"); done
      train nano_ladder "$runs/seed$seed/$arm" "$steps" "data.source=$prepared" "seed=$seed" "train.save_every=$every" \
        "train.keep_every=$every" "data.workers=$workers"
    done
  done
}

run_jobs python benchmarks/nano_ladder.py "$runs"
