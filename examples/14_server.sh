#!/usr/bin/env bash
# A server with parallel slots: batches that mix prompts and tokens, and each request told apart.
. "$(dirname "$0")/paths.sh"

cat >requests.py <<'END'
"""Waits for the server, sends three requests a little apart, then ends it."""
import json, os, signal, sys, threading, time, urllib.request

base = "http://127.0.0.1:18077"

def ask(slot, prompt, tokens):
    body = {"prompt": prompt, "n_predict": tokens, "id_slot": slot, "temperature": 0,
            "ignore_eos": True}
    request = urllib.request.Request(base + "/completion", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=120).read()

while True:
    try:
        urllib.request.urlopen(base + "/health", timeout=1)
        break
    except OSError:
        time.sleep(0.1)
prompts = ["Once upon a time", "The three laws of robotics are " * 4, "A list of rivers: " * 8]
threads = [threading.Thread(target=ask, args=(i, p, 24 + 8 * i)) for i, p in enumerate(prompts)]
for thread in threads:
    thread.start()
    time.sleep(0.1)
for thread in threads:
    thread.join()
ask(0, prompts[0], 16)
os.kill(int(sys.argv[1]), signal.SIGTERM)
END
"$PYTHON" -m profinfer record --force -o server.pf -- $LLAMA/llama-server -m $MODEL -t 2 -c 2048 -np 3 \
    --port 18077 >/dev/null 2>messages.txt &
"$PYTHON" requests.py $!
wait
echo '$ profinfer record -o server.pf -- llama-server -m '"$(basename $MODEL)"' -t 2 -np 3 &'
tail -n 3 messages.txt
echo
say profinfer report server.pf --by generation
echo
profinfer report server.pf | sed -n '/^Phases/,/^$/p'
