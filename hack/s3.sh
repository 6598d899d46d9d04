#!/usr/bin/env bash
# Prints the path of the S3 server that the tests run against, built once. They
# call it themselves; nothing skips when it cannot be had.
set -euo pipefail
exec "$(dirname "$0")/tool.sh" versitygw v1.8.0 github.com/versity/versitygw/cmd/versitygw
