# shellcheck shell=bash
# What scripts of many nano runs share, and common.sh: options, commands of a run and of its measurement, and the GPUs. The script has the
# function `jobs`, which prints lines of launch/on_gpus.py: OUTPUT [NEED ...] -- COMMAND.

# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

data='' runs='' prepared=data/prepared/emoji
seeds=()
cores=1 workers=1  # of the machine; processes that load data for a run
needs=() last=()        # of the run whose line comes next: what must be there, and keys that come after those of the command line

# open_runs "OPTION WITH VALUE ..." "SWITCH ..." "NUMBER ..." ARGUMENT ...: read the options, beside those that all scripts have, of which
# so named ones are numbers, and set the variables above.
open_runs() {
  local numbers
  read -ra numbers <<<"$3"
  read_options "steps seeds gpus per-gpu time-limit $1" "$2" "${@:4}"
  if ((${#words[@]} < 2)); then show_help >&2; exit 2; fi
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
  if [[ -z ${given[gpus]-} ]]; then
    given[gpus]=$(find /dev -maxdepth 1 -name "nvidia[0-9]*" | wc -l)
    ((given[gpus])) || given[gpus]=1
  fi
  need_number steps gpus per-gpu ${given[time-limit]+time-limit} "${numbers[@]}"
  data=${words[0]} runs=${words[1]}
  read -ra seeds <<<"${given[seeds]}"
  [[ ${seeds[*]} =~ ^(0|[1-9][0-9]{0,8})( (0|[1-9][0-9]{0,8}))*$ && -z $(printf '%s\n' "${seeds[@]}" | sort | uniq -d) ]] ||
    fail "--seeds ${given[seeds]}: give different whole numbers."
  # A core of each run is for the process that starts its kernels: where loading took that as well, steps took twice as long.
  cores=$(nproc)
  # shellcheck disable=SC2034  # for the scripts
  workers=$((cores / (given[gpus] * given[per-gpu]) - 1))
  if ((workers < 1)); then workers=1; fi
  # Seeds and arms compile the same programs.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$(realpath -m "$runs/compiled")}"
}

# train CONFIG WORKDIR STEPS KEY=VALUE ...: the line of a run.
train() {
  local set=() change
  for change in "${@:4}" "${words[@]:2}" "${last[@]}"; do set+=(--set "$change"); done
  quoted "$2/model" "${needs[@]}" -- dim train --config "configs/$1.py" --workdir "$2" --steps "$3" "${set[@]}"
}

# evaluate MODEL REPORT [OPTION ...]: the line of a measurement.
evaluate() {
  quoted "$2" "$1" -- dim evaluate emoji --checkpoint "$1" --data "$data" --batch-size 124 -o "$2" --overwrite "${@:3}"
}

# run_jobs COMMAND ...: make the data where they are missing, run the lines of `jobs`, then COMMAND, whatever failed.
run_jobs() {
  if [[ ! -d $data ]]; then run dim build-data emoji "$data"; fi
  if [[ ! -d $prepared || -d $prepared/.prepare ]]; then run dim prepare --tokenizer dim_jax/nano/tokenizer "$data" "$prepared"; fi
  local on_gpus=(python launch/on_gpus.py --gpus "${given[gpus]}" --per-gpu "${given[per-gpu]}")
  if [[ -n ${given[time-limit]-} ]]; then on_gpus+=(--time-limit "${given[time-limit]}"); fi
  if dry; then on_gpus+=(--dry-run); fi
  exec "${on_gpus[@]}" -- "$@" < <(jobs)
}
