#!/usr/bin/env bash
# Without root: which functions of a program would be probed, at which instruction, at what cost.
. "$(dirname "$0")/paths.sh"

say profinfer probes $LLAMA/llama-completion
