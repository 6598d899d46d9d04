#!/usr/bin/env bash
# The main job in front of the reader, on real guests: build an image, launch
# it, change the guest, save it as the next image, launch that, see the change.
# Everything lives in a home of its own that is removed at the end, so nothing
# is left running and a second run works.
set -euo pipefail
cd "$(dirname "$0")/.."

kami=${KAMI:-bin/kami}
[ -x "$kami" ] || { echo "demo: $kami is not there; run make build" >&2; exit 1; }

# qemu of the system's libvirt runs as another user: the home must be passable.
home=$(mktemp -d "${TMPDIR:-/tmp}/kami-demo-XXXXXX")
chmod 0711 "$home"
export KAMI_HOME="$home"

cleanup() {
  local status=$?
  trap - EXIT
  local left
  left=$("$kami" instance list --filter instance-state-name=pending,running,stopping,stopped -o id 2>/dev/null || true)
  if [ -n "$left" ]; then
    echo
    echo "demo: cleaning up: kami instance terminate" $left
    # shellcheck disable=SC2086 # one argument an id
    "$kami" instance terminate $left >/dev/null 2>&1 || true
  fi
  rm -rf "$home"
  [ "$status" -eq 0 ] || echo "demo: failed" >&2
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi

quoted() { # the command as a person would type it
  local word out=kami
  for word in "$@"; do
    case $word in
    '' | *[!A-Za-z0-9_./:=,@%+-]*) out+=" '${word//\'/\'\\\'\'}'" ;;
    *) out+=" $word" ;;
    esac
  done
  printf '%s' "$out"
}

number=0
step() { # step TITLE ARGS...: runs kami with ARGS, keeps its output in $out
  run kept "$@"
}
show() { # show TITLE ARGS...: the same on the reader's terminal, nothing kept
  run shown "$@"
}
run() {
  local how=$1
  shift
  local title=$1
  shift
  number=$((number + 1))
  printf '\n%s%d. %s%s\n   $ %s\n' "$bold" "$number" "$title" "$plain" "$(quoted "$@")"
  local start=${EPOCHREALTIME/[.,]/}
  # Read from nothing: ssh would eat the reader's typing.
  if [ "$how" = shown ]; then
    "$kami" "$@" </dev/null
  else
    out=$("$kami" "$@" </dev/null)
    printf '%s\n' "$out"
  fi
  local end=${EPOCHREALTIME/[.,]/}
  printf '   (%d.%02d s)\n' $(((end - start) / 1000000)) $(((end - start) / 10000 % 100))
}

started=$SECONDS
echo "kami's main job, on real guests. Its home for this run is $home."

step "Build the image tiny from its recipe" build images/tiny --name tiny -o id
step "Make a key pair to log in with" key create demo -o id
step "Launch the image and wait until it answers on ssh" \
  launch tiny --key-name demo --wait ssh -o id
first=$out
step "Change the guest: write a file into its root filesystem" \
  ssh "$first" -- "echo 'written in $first' > /etc/kami-demo; cat /etc/kami-demo; uname -srm"
step "Save the changed guest as the next image (clean reboot, so that its buffers are on disk)" \
  image create "$first" --name tiny-changed -o id
step "Launch the new image" launch tiny-changed --key-name demo --wait ssh -o id
second=$out
[ "$second" != "$first" ] || { echo "demo: the second launch gave the first instance" >&2; exit 1; }
step "Is the change there?" ssh "$second" -- 'cat /etc/kami-demo'
[ "$out" = "written in $first" ] || {
  echo "demo: the second guest says '$out', want 'written in $first'" >&2
  exit 1
}
show "The images" image list
show "What each costs on disk: the second only what was changed" store du
step "Terminate both guests" instance terminate "$first" "$second" -o id

left=$("$kami" instance list --filter instance-state-name=pending,running,stopping,stopped -o id)
[ -z "$left" ] || { echo "demo: still there: $left" >&2; exit 1; }
printf '\n%sDone in %d s; nothing is left running.%s\n' "$bold" $((SECONDS - started)) "$plain"
