#!/usr/bin/env bash
# The upper half of the model on an RPC server, over loopback. Both sides are recorded, and drawn on one
# timeline: the server's work hangs on the messages that asked for it.
. "$(dirname "$0")/paths.sh"
export GGML_BACKEND_PATH=$BACKENDS/rpc/libggml-rpc.so

echo "$ profinfer record -o server.pf -- ./rpc-server -H 127.0.0.1 -p 50152 -t 1 &"
"$PYTHON" -m profinfer record --force -o server.pf -- $BACKENDS/bin/rpc-server \
    -H 127.0.0.1 -p 50152 -t 1 >server.log 2>&1 &
recorder=$!
until (exec 3<>/dev/tcp/127.0.0.1/50152) 2>/dev/null || ! kill -0 $recorder 2>/dev/null; do sleep 0.2; done
say profinfer record --force -o client.pf -- $LLAMA/llama-bench -m $MODEL -t 1 -p 64 -n 16 -r 1 \
    -ngl 15 -rpc 127.0.0.1:50152 2>&1 | grep -v '^load_backend\|^$\|^build'
kill -TERM $recorder
wait $recorder
echo
say profinfer report client.pf --by backend --phase decode
echo
say profinfer report server.pf --by backend
echo
say profinfer export client.pf --with server.pf --force -o rpc.pftrace 2>&1
