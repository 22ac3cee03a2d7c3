#!/usr/bin/env bash
# Train the nano model on one GPU from nothing: data, autoencoder and encoder side by side, the painter over them; then measure
# it and write it in the published naming. A second call goes on where the first one stopped. How long each run takes: docs/nano.md.
#
#   launch/nano.sh [--dry-run] DATA RUNS [KEY=VALUE ...]     such as: launch/nano.sh data/emoji runs data.workers=14
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "" "" "$@"
if ((${#words[@]} < 2)); then show_help >&2; exit 2; fi
data=${words[0]} runs=${words[1]}
set=()
for change in "data.source=data/prepared/emoji" "${words[@]:2}"; do set+=(--set "$change"); done

train() {  # NAME [KEY=VALUE ...]
  local name=$1 own=()
  shift
  for change in "$@"; do own+=(--set "$change"); done
  run dim train --config "configs/nano_$name.py" --workdir "$runs/nano_$name" "${set[@]}" "${own[@]}"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -d $data ]]; then run dim build-data emoji "$data"; fi
if [[ ! -d data/tints ]]; then run dim build-data tints data/tints --from "$data"; fi
if [[ ! -d data/icons ]]; then run dim build-data icons data/icons; fi
if [[ ! -d data/older ]]; then run dim build-data emoji data/older --set noto_v1 --set emojione; fi
run dim prepare "$data" data/prepared/emoji  # one that is there is left as it is
for name in tints icons older; do run dim prepare "data/$name" "data/prepared/$name"; done  # where configs/nano_speedrun.py has them

# The two share the card: each takes less than half of its memory.
export XLA_PYTHON_CLIENT_MEM_FRACTION=0.45
train autoencoder & autoencoder=$!
train encoder & encoder=$!
wait "$autoencoder"
wait "$encoder"
unset XLA_PYTHON_CLIENT_MEM_FRACTION

train speedrun "init.encoder=$runs/nano_encoder/model" "init.autoencoder=$runs/nano_autoencoder/model"

run dim convert "$runs/nano_speedrun/model" "$runs/nano" --to dim --dtype bfloat16 --max-shard-size 15MiB --overwrite
measure=(run dim evaluate emoji --checkpoint "$runs/nano" --data "$data" --overwrite)
"${measure[@]}" -o "$runs/nano.json"
"${measure[@]}" -o "$runs/known.json" --known-targets
