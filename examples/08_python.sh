#!/usr/bin/env bash
# An engine inside a Python package: it is loaded by dlopen, long after the program has started.
. "$(dirname "$0")/paths.sh"

cat >app.py <<'END'
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx, p.n_parallel = 1024, 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
request = {"prompt": "The quick brown fox", "max_tokens": 32, "temperature": 0}
print(xllamacpp.Server(p).handle_completions(request)["choices"][0]["text"])
END
say profinfer record --force -o python.pf -- "$PYTHON" app.py $MODEL 2>messages.txt
tail -n 3 messages.txt
echo
say profinfer report python.pf --by role --phase decode
