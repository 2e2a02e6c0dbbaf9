#!/usr/bin/env bash
# Eight layers on Vulkan, without a GPU: Mesa's software driver (apt: mesa-vulkan-drivers). VULKAN names
# a libggml-vulkan.so of the same engine (cmake -DGGML_VULKAN=ON -DGGML_BACKEND_DL=ON, target
# ggml-vulkan: five minutes on 2 cores; Debian 12's Vulkan headers are too old, docs/backends.md).
# The engine passes over a device that is a CPU unless it is named: GGML_VK_VISIBLE_DEVICES, -dev.
. "$(dirname "$0")/paths.sh"
VULKAN=${VULKAN:-$BACKENDS/vulkan/libggml-vulkan.so}
[ -f "$VULKAN" ] || { echo "no $VULKAN: set VULKAN" >&2; exit 77; }
export GGML_BACKEND_PATH=$VULKAN GGML_VK_VISIBLE_DEVICES=0 GGML_VK_PERF_LOGGER=1

say profinfer record --force -o vulkan.pf -- $LLAMA/llama-completion -m $MODEL -t 2 -n 6 -ngl 8 \
    -dev Vulkan0 -p "The three laws of robotics are" -no-cnv --temp 0 --no-warmup -lv 1 \
    2>vulkan.log
echo
grep '^profinfer\|^  [0-9]' vulkan.log
echo
say profinfer report vulkan.pf --by backend --phase decode --device-times vulkan.log
