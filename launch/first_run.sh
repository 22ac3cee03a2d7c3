#!/usr/bin/env bash
# Stage II of training from random weights on your own pairs, from the files to an edited picture, with a kill on the way: whether all of
# it works on a machine, at full size, before the real run begins. A second call goes on where the first one stopped.
#
#   launch/first_run.sh [--dry-run] DATA WORK IMAGE PROMPT [KEY=VALUE ...]
#
# DATA is a folder that `dim prepare` reads; WORK gets all that is made; the trained model edits IMAGE as PROMPT says. Keys of the config
# follow, as `dim train --set` takes them. The run is 200 steps of 8 rows and saves every 100: its state takes 26 GB on disk at full size, twice while it is saved, its model 23 GB.
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read_options "" "" "$@"
if ((${#words[@]} < 4)); then show_help >&2; exit 2; fi
data=${words[0]} work=${words[1]} image=${words[2]} prompt=${words[3]}
set=()
for part in encoder connector sana autoencoder; do set+=(--set "init.$part="); done
for change in "data.source=$work/prepared" data.resolution=512 data.batch_size=8 "data.lengths=(512, 640, 768, 1024)" model.remat=products \
  optim.learning_rate=1e-4 optim.warmup_steps=20 optim.ema_decay=0.95 train.steps=200 train.save_every=100 train.log_every=10 \
  train.show_every=0 train.keep=1 train.keep_every=0 "${words[@]:4}"; do
  set+=(--set "$change")
done
train=(dim train --config edit_stage2 --workdir "$work/run" --set "data.cache=$work/cache" "${set[@]}")

cd "$(dirname "${BASH_SOURCE[0]}")/.."
run dim prepare "$data" "$work/prepared"
run dim cache --config edit_stage2 --into "$work/cache" "${set[@]}"

if [[ ! -d $work/run/checkpoints ]]; then
  note "Killed after its first checkpoint and some more steps; then the same command again."
  quoted "${train[@]}"
  if ! dry; then
    setsid "${train[@]}" & killed=$!
    # Orbax gives a checkpoint its name, a number, when it is whole.
    until compgen -G "$work/run/checkpoints/[1-9]*[0-9]" >/dev/null || ! kill -0 "$killed" 2>/dev/null; do sleep 0.1; done
    sleep 2
    kill -KILL -- "-$killed" 2>/dev/null || true
    wait "$killed" || true
    last=$(tail -n 1 "$work/run/log.jsonl")
    note "Killed; the log's last line: $last"
  fi
fi
run "${train[@]}"
run dim edit --checkpoint "$work/run/model" --image "$image" --prompt "$prompt" -o "$work/edited.png" --overwrite
