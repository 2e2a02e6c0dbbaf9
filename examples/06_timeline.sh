#!/usr/bin/env bash
# A timeline of tokens, graphs, operators and waits for ui.perfetto.dev.
. "$(dirname "$0")/paths.sh"

[ -f first.pf ] || "$HERE/01_first_trace.sh" >/dev/null
say profinfer export --force first.pf -o first.pftrace
