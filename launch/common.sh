# Sourced by the launchers: what all of them do alike. Stands in the repository's root.
#   begin "$@"        understands --help, --dry-run and changes of the config
#   need NAME ...     ends with one line and code 2 where one of them isn't set
#   number NAME ...   ... or isn't a number of at least 1
#   cost --chip=...   says what the run will cost
#   run COMMAND ...   prints a command and runs it, or prints it alone
#   start COMMAND ... and finish   run commands side by side, with SIGTERM handed on to them
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PYTHON=${PYTHON:-.venv/bin/python}
MFU=${MFU:-0.4}
RESTARTS=${RESTARTS:-100}
HOURS=${HOURS:-}
dry_run=
stopping=
signals=0
changes=()
children=()

stop() {
  echo "error: $1" >&2
  exit 2
}

# Reads the arguments. Afterwards `changes` holds the changes of the config, and `dry_run` is yes or nothing.
begin() {
  for word in "$@"; do
    case $word in
      --help)
        awk '/^#(!|SBATCH)/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
        exit
        ;;
      --dry-run) dry_run=yes ;;
      --config.*=*) changes+=("$word") ;;
      *) stop "unexpected argument '$word': known are --help, --dry-run and --config.a.b=c; the rest are variables" ;;
    esac
  done
}

need() {
  for variable in "$@"; do
    [ -n "${!variable:-}" ] || stop "$variable is not set: $(awk -v name="$variable" '$1 == "#" && $2 == name {
      sub(/^# +[A-Z_]+ +/, ""); print; exit }' "$0")"
  done
}

number() {
  for variable in "$@"; do
    [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || stop "$variable = ${!variable}: must be a whole number, 1 or more"
  done
}

environment() {
  command -v "$PYTHON" >/dev/null || stop "PYTHON = $PYTHON: not there; 'bash launch/env.sh' makes .venv/bin/python"
  [ -z "$HOURS" ] || [[ $HOURS =~ ^[0-9]+(\.[0-9]+)?$ ]] || stop "HOURS = $HOURS: must be a number of hours"
  [[ $RESTARTS =~ ^[0-9]+$ ]] || stop "RESTARTS = $RESTARTS: must be a whole number"
}

cost() {
  environment
  "$PYTHON" -m nca_jax cost --config="$CONFIG" "${changes[@]+"${changes[@]}"}" --mfu="$MFU" "$@" \
    ${HOURS:+--hours="$HOURS"} || exit 2
}

# A command as one could type it.
words() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,+@%-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="$word "
  done
  echo "${line% }"
}

run() {
  words "$@"
  [ -n "$dry_run" ] || "$@"
}

# Starts a command behind the script, which hands SIGTERM and Ctrl-C on to it.
start() {
  "$@" &
  children+=($!)
  [ -z "$stopping" ] || kill -TERM "$!" 2>/dev/null || true # the signal came before its number was noted
}

# Waits for all that was started; the highest exit code becomes `code`.
finish() {
  local child one
  code=0
  for child in "${children[@]}"; do
    while :; do
      signals=0 one=0
      wait "$child" || one=$?
      [ "$signals" -gt 0 ] || break # a signal ends `wait` early: wait for the process itself
    done
    [ "$one" -le "$code" ] || code=$one
  done
  children=()
}

# Whether to go on after exit code $1, having gone on $2 times: not if this script itself was told to stop.
again() {
  [ "$1" = 75 ] && [ -z "$stopping" ] && [ "$2" -lt "$RESTARTS" ]
}

forward() {
  signals=$((signals + 1)) stopping=yes
  for child in "${children[@]+"${children[@]}"}"; do
    kill -TERM "$child" 2>/dev/null || true
  done
}
