#!/usr/bin/env bash
# Runs the linters at the versions named here, building them once into
# .cache/bin. With the argument "fmt" it formats instead.
set -euo pipefail
cd "$(dirname "$0")/.."

golangci=v2.15.0
gofumpt=v0.12.0

tool() { hack/tool.sh "$@"; }

fumpt=$(tool gofumpt "$gofumpt" mvdan.cc/gofumpt)
if [ "${1:-}" = fmt ]; then
  "$fumpt" -w cmd pkg test
  exit 0
fi

status=0

printf 'lint: gofumpt\n'
unformatted=$("$fumpt" -l cmd pkg test)
if [ -n "$unformatted" ]; then
  printf 'lint: not formatted (make fmt):\n%s\n' "$unformatted" >&2
  status=1
fi

printf 'lint: shell syntax\n'
for script in hack/*.sh .ci/run; do
  bash -n "$script" || status=1
done

lint=$(tool golangci-lint "$golangci" github.com/golangci/golangci-lint/v2/cmd/golangci-lint)
printf 'lint: golangci-lint\n'
"$lint" run --timeout 15m ./... || status=1

exit "$status"
