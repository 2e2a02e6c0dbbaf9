"""Ask a question no report answers: does attention get slower as the KV cache grows?

usage: python 07_own_analysis.py TRACE.pf
"""

import sys

import profinfer

trace = profinfer.open(sys.argv[1])

# One row an operator of a graph: its wall time lies between two barriers.
walls = trace.op_walls.merge(trace.nodes[["node_id", "op", "role"]], on="node_id")
walls["us"] = (walls["release_ns"] - walls["begin_ns"]) / 1000

# graph -> decode call -> position of its token
graphs = trace.graphs[trace.graphs["phase"] == "decode"][["graph_id", "call_id"]]
position = trace.calls.set_index("call_id")["pos_last"]
walls = walls.merge(graphs, on="graph_id")
walls["position"] = walls["call_id"].map(position)

table = walls.pivot_table(
    index=walls["position"] // 32 * 32, columns="role", values="us", aggfunc="sum", observed=True
)
tokens = walls.groupby(walls["position"] // 32 * 32)["call_id"].nunique()
print("us per token, by position of the token")
print(table.div(tokens, axis=0)[["attention", "attention qkv", "ffn"]].round(1).to_string())
