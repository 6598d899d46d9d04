#!/usr/bin/env bash
# Prints the path of a Go program at one version, which it builds into .cache/bin
# if it is not there yet. Two that want it at once build it once.
#
#   hack/tool.sh NAME VERSION PACKAGE
set -euo pipefail
cd "$(dirname "$0")/.."

bin="$PWD/.cache/bin"
path="$bin/$1-$2"
mkdir -p "$bin"
if [ ! -x "$path" ]; then
  exec 9>"$bin/.lock"
  flock 9
  if [ ! -x "$path" ]; then
    printf 'building %s %s\n' "$1" "$2" >&2
    dir=$(mktemp -d "$bin/.build-XXXXXX")
    trap 'rm -rf "$dir"' EXIT
    # An odd answer of the module proxy is no reason to give up.
    for n in 1 2 3; do
      GOFLAGS= GOBIN="$dir" go install "$3@$2" >&2 9>&- && break
      [ "$n" -lt 3 ] || exit 1
      sleep $((n * 5))
    done
    mv "$dir/$1" "$path"
  fi
fi
printf '%s\n' "$path"
