#!/usr/bin/env bash
# A training run on all hosts of a Cloud TPU slice, or of several.
#
#   tools/launch/tpu_pod.sh create  --name=pod --zone=us-west4-a --type=v5litepod-256 --runtime=v2-alpha-tpuv5-lite
#   tools/launch/tpu_pod.sh state   --name=pod --zone=us-west4-a
#   tools/launch/tpu_pod.sh install --name=pod --zone=us-west4-a --repository=https://... --revision=68d8166
#   tools/launch/tpu_pod.sh start   --name=pod --zone=us-west4-a -- --config=configs/maxvit.py:base_224 --workdir=gs://bucket/runs/base
#   tools/launch/tpu_pod.sh watch   --name=pod --zone=us-west4-a
#   tools/launch/tpu_pod.sh logs    --name=pod --zone=us-west4-a
#   tools/launch/tpu_pod.sh stop    --name=pod --zone=us-west4-a
#   tools/launch/tpu_pod.sh delete  --name=pod --zone=us-west4-a
#
# What stands after -- are the options of train.py. Every command is printed
# before it runs; with --dry_run it is only printed. Nothing is deleted but by
# `delete`. With --slices=2 all of it is about two slices, pod-0 and pod-1.
# --spot asks for chips that may be taken away. Project and account are those of
# gcloud's configuration.
set -euo pipefail

fail() {
  echo "tpu_pod.sh: $1" >&2
  exit 2
}

name="" zone="" type="" runtime="" repository="" revision=""
python=python3.11 slices=1 spot=false dry_run=false
[[ $# -gt 0 ]] || fail "say what to do; see the first lines of this script"
action=$1
shift
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --repository=*) repository=${1#*=} ;;
    --revision=*) revision=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --python=*) python=${1#*=} ;;
    --spot) spot=true ;;
    --dry_run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) fail "there is no option $1" ;;
  esac
  shift
done
train_options=("$@")

needs() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || fail "$action needs --$option"
  done
}

run() {
  printf '%q ' "$@"
  echo
  "$dry_run" || "$@"
}

nodes() {
  local index
  if [[ $slices -eq 1 ]]; then
    echo "$name"
  else
    for ((index = 0; index < slices; index++)); do echo "$name-$index"; done
  fi
}

# on_hosts WHICH COMMAND: of each slice, on host number WHICH or on "all".
on_hosts() {
  local node
  for node in $(nodes); do
    run gcloud compute tpus tpu-vm ssh "$node" --zone="$zone" \
      --worker="$1" --command="$2"
  done
}

# Whether the process of train.pid is ours: numbers are given again.
running='grep -q train.py /proc/$(cat train.pid 2>/dev/null)/cmdline 2>/dev/null'

queued() {
  run gcloud compute tpus queued-resources "$@" --zone="$zone"
}

needs name zone
case $action in
  create)
    needs type runtime
    options=(--accelerator-type="$type" --runtime-version="$runtime")
    if [[ $slices -eq 1 ]]; then
      options+=(--node-id="$name")
    else
      options+=(--node-count="$slices" --node-prefix="$name")
    fi
    if "$spot"; then options+=(--spot); fi
    queued create "$name" "${options[@]}"
    ;;
  state)
    queued describe "$name" --format="value(state.state)"
    ;;
  install)
    needs repository revision
    wanted=$(printf %q "$revision")
    on_hosts all "set -e
if ! command -v $python; then
  # A machine that has just begun may be upgrading itself.
  apt='sudo apt-get --quiet --yes --option=DPkg::Lock::Timeout=600'
  \$apt update
  \$apt install $python $python-venv
fi
test -d foveal || git clone --quiet $(printf %q "$repository") foveal
cd foveal
git fetch --quiet --tags
# Of a branch what is there now, and not what was when it was cloned.
commit=\$(git rev-parse --quiet --verify origin/$wanted^{commit} ||
  git rev-parse --quiet --verify $wanted^{commit}) || {
  echo there is no revision $wanted >&2
  exit 1
}
git checkout --quiet --detach \$commit
test -d .venv || $python -m venv .venv
.venv/bin/pip install --quiet -e . 'jax[tpu]' gcsfs
git log -1 --format='%h on '\$(hostname)"
    ;;
  start)
    [[ ${#train_options[@]} -gt 0 ]] || fail "start needs the options of train.py after --"
    command="cd foveal || exit 1
if $running; then
  echo 'a run is going on here already' >&2
  exit 1
fi
nohup .venv/bin/python train.py $(printf '%q ' "${train_options[@]}")>> train.log 2>&1 < /dev/null &
echo \$! > train.pid"
    on_hosts all "$command"
    ;;
  watch)
    # Process 0, which says what the run does, is on the first host of all.
    run gcloud compute tpus tpu-vm ssh "$(nodes | head -n 1)" --zone="$zone" \
      --worker=0 --command="tail -n 40 -f foveal/train.log"
    ;;
  logs)
    on_hosts all "hostname; tail -n 20 foveal/train.log"
    ;;
  stop)
    # The notice of a pre-emption: all hosts save at the same step and end.
    on_hosts all "cd foveal || exit 1
if $running; then kill -TERM \$(cat train.pid); else echo 'no run is going on here'; fi"
    ;;
  delete)
    queued delete "$name" --force
    ;;
  *) fail "cannot $action: create, state, install, start, watch, logs, stop or delete" ;;
esac
