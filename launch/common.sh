# shellcheck shell=bash
# What the launch scripts share; they source it.

# Exit codes of `dim train` after which the same command goes on (dim_jax/training/supervision.py).
readonly HUNG=70 STOPPED=75
# More are those of signals: it was killed. Where several processes are one run, one may see first how JAX ends those whose peer is gone.
readonly SIGNALS=128

declare -A given=() # option -> value, or 1 for a switch
words=()            # what is no option
arguments=()        # what stands after "--": the arguments of `dim train`

# The comment at a script's head.
show_help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

fail() {
  printf 'error: %s\n%s --help says more.\n' "$*" "$0" >&2
  exit 2
}

# read_options "OPTION WITH VALUE ..." "SWITCH ..." ARGUMENT ...
read_options() {
  local valued=" $1 " switches=" $2 dry-run " name
  shift 2
  while (($#)); do
    name=${1#--}
    case $1 in
      --help | -h) show_help && exit ;;
      --) shift && arguments=("$@") && return ;;
      --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" && [[ $valued == *" ${name%%=*} "* ]] || fail "there is no option --${name%%=*} with a value." ;;
      --*)
        if [[ $switches == *" $name "* ]]; then
          given[$name]=1 && shift
        elif [[ $valued == *" $name "* ]]; then
          [[ -n ${2-} ]] || fail "--$name needs a value."
          given[$name]=$2 && shift 2
        else
          fail "there is no option --$name."
        fi
        ;;
      *) words+=("$1") && shift ;;
    esac
  done
}

# Refuse where an option is missing; all that are missing are named.
need() {
  local name missing=()
  for name in "$@"; do [[ -n ${given[$name]-} ]] || missing+=("--$name"); done
  ((${#missing[@]} == 0)) || fail "missing: ${missing[*]}."
}

# Refuse a value that is no number from 1 on.
need_number() {
  local name
  for name in "$@"; do [[ ${given[$name]} =~ ^[1-9][0-9]*$ ]] || fail "--$name ${given[$name]}: give a number from 1 on."; done
}

# Refuse arguments of `dim train` that cannot go on: without a config, or without a working directory that outlives the machine ("shared").
need_run() {
  local i config='' workdir=''
  for i in "${!arguments[@]}"; do
    case ${arguments[i]} in
      --config) config=${arguments[i + 1]-} ;;
      --config=*) config=${arguments[i]#*=} ;;
      --workdir) workdir=${arguments[i + 1]-} ;;
      --workdir=*) workdir=${arguments[i]#*=} ;;
    esac
  done
  [[ -n $config && -n $workdir ]] || fail "give the arguments of dim train after --, with --config and --workdir."
  [[ ${1-} != shared || $workdir == gs://* || $workdir == /* ]] ||
    fail "--workdir $workdir: it must outlive the machines: gs://BUCKET/..., or an absolute path of a file system that all of them mount."
}

# Words as one line that a shell reads as these words again.
quoted() {
  local word line=()
  for word in "$@"; do
    if [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]]; then line+=("$word"); else line+=("${word@Q}"); fi
  done
  printf '%s\n' "${line[*]}"
}

dry() { [[ -n ${given[dry-run]-} ]]; }

# Show a command as it can be copied, and run it unless this is a dry run.
run() {
  quoted "$@"
  dry || "$@"
}

# What a person should know, as a comment between commands.
note() { printf '# %s\n' "$*"; }

# Whether the same command goes on after this exit code.
goes_on() { (($1 == HUNG || $1 == STOPPED || $1 > SIGNALS)); }
