#!/usr/bin/env bash
# A timeline of tokens, graphs, operators and waits for ui.perfetto.dev; a part of it with flows; one
# that must not be larger than 4 MB.
. "$(dirname "$0")/paths.sh"

[ -f first.pf ] || "$HERE/01_first_trace.sh" >/dev/null
say profinfer export --force first.pf -o first.pftrace
echo
say profinfer export --force first.pf -o token.pftrace --tokens 10 --flows
echo
say profinfer export --force first.pf -o small.pftrace --max-size 4M
