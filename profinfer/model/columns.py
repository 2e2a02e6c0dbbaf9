"""Layer 5: what every column of the tables means: unit and a sentence. Data only.

``docs/tables.md`` is written from it; a test compares both with the tables themselves.
"""

from __future__ import annotations

# table -> (what a row is, {column: (unit, meaning)})
COLUMNS: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "calls": (
        "One call of llama_decode, llama_encode or llama_process; a call inside a call is folded.",
        {
            "call_id": ("id", "Number of the call; the row number."),
            "tid": ("id", "Thread that made it."),
            "ctx": ("address", "The llama_context."),
            "function": ("text", "Function that was called."),
            "begin_ns": ("ns", "Entered."),
            "end_ns": ("ns", "Returned; the recording's end if it had not."),
            "done_ns": (
                "ns",
                "Its results were there: later than the end where a backend computes asynchronously"
                " and the program waited for it afterwards. The call's time is done - begin.",
            ),
            "n_tokens": ("count", "Tokens of the batch; -1 not known."),
            "pos_first": ("position", "Of the first token; -1 not given."),
            "pos_last": ("position", "Of the last token; -1 not given."),
            "n_seqs": ("count", "Sequences that its tokens belong to; -1 not known."),
            "seq": ("id", "The sequence, if it is one; else -1."),
            "encode": ("bool", "An encoder ran."),
            "warmup": ("bool", "The program only warmed up."),
            "cut": ("bool", "Its end, or the wait for its results, was cut off."),
            "ret": ("number", "What it returned; not 0 is a failure or a warning."),
            "lost_before": ("bool", "Calls of its thread just before it were lost."),
            "phase": ("text", "warmup, prefill, decode, verify, mixed, encode or other."),
            "generation": ("id", "Number of the prompt in its sequence; -1 for several sequences."),
            "token_index": ("count", "Decode step of its generation, from 0; else -1."),
            "n_decoded": ("count", "Tokens of it that are decode steps."),
            "torn": ("bool", "Graphs of it were lost: what it did is not known in full."),
        },
    ),
    "sequences": (
        "The tokens of one sequence in one call.",
        {
            "call_id": ("id", "The call."),
            "seq": ("id", "llama_seq_id; -1 not known, the row is then the whole call."),
            "pos_first": ("position", "Of its first token in this batch; -1 not given."),
            "n_tokens": ("count", "Its tokens in this batch."),
            "n_outputs": ("count", "Those whose logits were asked for; -1 not known."),
            "phase": ("text", "prefill, decode or verify; else that of the call."),
            "generation": ("id", "Number of the prompt; -1 outside of prefill and decode."),
            "token_index": ("count", "Decode step of its generation, from 0; else -1."),
        },
    ),
    "tokens": (
        "One token of a call.",
        {
            "call_id": ("id", "The call."),
            "seq": ("id", "llama_seq_id; -1 not known."),
            "position": ("position", "Its own; -1 not given."),
            "phase": ("text", "prefill, decode or verify; else that of the call."),
            "generation": ("id", "Number of the prompt; -1 outside of prefill and decode."),
            "token_index": ("count", "Decode step of its generation, from 0; else -1."),
            "begin_ns": ("ns", "Its call began."),
            "end_ns": ("ns", "Its call returned."),
            "done_ns": ("ns", "The results of its call were there."),
            "step_ns": ("ns", "Since the decode step before was done; -1 none, or no decode."),
        },
    ),
    "samples": (
        "One outermost call of a sampler.",
        {
            "sample_id": ("id", "Number; the row number."),
            "tid": ("id", "Thread."),
            "function": ("text", "Function that was called."),
            "begin_ns": ("ns", "Entered."),
            "end_ns": ("ns", "Returned."),
        },
    ),
    "requests": (
        "A task of a server's queue: a request, or something about the server itself.",
        {
            "task": ("id", "The server's number of it."),
            "tid": ("id", "Thread that queued it; -1 not seen."),
            "seq": ("id", "Slot that it was given to, which is its sequence; -1 none."),
            "posted_ns": ("ns", "Queued, its prompt tokenised; -1 not seen."),
            "launched_ns": ("ns", "Given to the slot; -1 not seen."),
        },
    ),
    "splits": (
        "A part of a graph handed to a backend.",
        {
            "split_id": ("id", "Number; the row number."),
            "tid": ("id", "Thread that handed it over."),
            "backend": ("text", "Name of the backend; empty if it is not known."),
            "address": ("address", "The ggml_backend_t."),
            "guid": ("text", "The backend's GUID, hexadecimal."),
            "cgraph": ("address", "The ggml_cgraph."),
            "n_nodes": ("count", "Its nodes."),
            "begin_ns": ("ns", "Entered ggml_backend_graph_compute_async."),
            "end_ns": ("ns", "Returned."),
            "call_id": ("id", "Call around it; -1 none."),
            "outermost": ("bool", "It lies in no other split."),
            "cut": ("bool", "Its end was not recorded."),
            "ctx": ("address", "The llama_context of its call; 0 none."),
            "def_id": ("id", "Definition: which nodes it has; -1 not read (CPU: see graphs)."),
            "instance": ("count", "Which backend of this name in its context, from 1."),
            "done_ns": ("ns", "Its work was known to be done; -1 no wait for it was seen."),
        },
    ),
    "graphs": (
        "One run of ggml_graph_compute.",
        {
            "graph_id": ("id", "Number; the row number."),
            "tid": ("id", "Thread that called it."),
            "cgraph": ("address", "The ggml_cgraph."),
            "def_id": ("id", "Definition: which nodes it has; -1 not known."),
            "n_nodes": ("count", "Its nodes."),
            "n_threads": ("count", "Threads asked for."),
            "threads_seen": ("count", "Threads that left operator records."),
            "begin_ns": ("ns", "Begun, after profinfer had read its nodes."),
            "end_ns": ("ns", "Returned."),
            "call_id": ("id", "Call around it; -1 none."),
            "split_id": ("id", "Split around it; -1 none."),
            "phase": ("text", "That of its call; other without one."),
            "walk_ns": ("ns", "profinfer's own time reading its nodes, before begin_ns."),
            "wanted": ("bool", "Its operators were wanted (record --tokens)."),
            "partial": ("bool", "Its definition has holes."),
            "cut": ("bool", "Its end was not recorded."),
            "complete": ("bool", "Whole, and each node with work was seen once per thread."),
            "enter_ns": ("ns", "First thread in the graph's loop; -1 not seen."),
            "release_ns": ("ns", "Last operator done on all threads; -1 not seen."),
            "sampled": ("bool", "Operators were recorded with it."),
        },
    ),
    "nodes": (
        "A node of a definition.",
        {
            "node_id": ("id", "Number; the row number."),
            "def_id": ("id", "Its definition."),
            "idx": ("count", "Place in the graph, from 0."),
            "op": ("text", "Operator, as the engine names it."),
            "name": ("text", "Name of its tensor."),
            "type": ("text", "Type of its tensor."),
            **{f"ne{i}": ("count", f"Elements in dimension {i}.") for i in range(4)},
            **{f"nb{i}": ("bytes", f"Stride of dimension {i}.") for i in range(4)},
            "shape": ("text", "ne, dimensions of 1 at the end left out."),
            **{
                f"src{i}_{part}": ("text", f"{what} of source {i}; empty without one.")
                for i in range(2)
                for part, what in (("name", "Name"), ("type", "Type"), ("ne", "Shape"))
            },
            "weight": ("text", "Name of its weight tensor; empty without one."),
            "empty": ("bool", "Nothing is computed for it."),
            "view": ("bool", "It is a view of another tensor."),
            "flags": ("bits", "Flags of its tensor."),
            "role": ("text", "Part that it plays in the transformer."),
            "layer": ("count", "Layer; -1 none."),
            "layer_inferred": (
                "bool",
                "The layer is that of its sources, its reader or the node before.",
            ),
            "params": ("text", "What its parameters say, e.g. the function of a GLU."),
            "unread": ("bool", "Its tensor could not be read."),
        },
    ),
    "edges": (
        "A source of a node.",
        {
            "def_id": ("id", "Definition."),
            "idx": ("count", "The node."),
            "slot": ("count", "Which of its sources."),
            "src_idx": ("count", "The source, if it is a node of the graph; else -1."),
            "src_name": ("text", "Name of the source."),
            "src_is_weight": ("bool", "The source is a weight."),
            "src_unread": ("bool", "The source could not be read."),
        },
    ),
    "ops": (
        "One operator on one thread.",
        {
            "graph_id": ("id", "Graph."),
            "node_id": ("id", "Node; of a fused operator the last."),
            "fused": ("count", "Nodes that it covers."),
            "tid": ("id", "Thread."),
            "begin_ns": ("ns", "Computing began."),
            "end_ns": ("ns", "Computing ended: the thread came to the barrier."),
            "release_ns": ("ns", "The barrier opened; wait is release - end."),
            "complete": ("bool", "Seen on all threads, nothing lost next to it."),
        },
    ),
    "counters": (
        "What was counted in a row of ops, which has the same number. Not there without counters.",
        {},
    ),
    "op_walls": (
        "One operator, all threads together.",
        {
            "graph_id": ("id", "Graph."),
            "node_id": ("id", "Node; of a fused operator the last."),
            "fused": ("count", "Nodes that it covers."),
            "begin_ns": ("ns", "Release of the operator before."),
            "release_ns": ("ns", "Its own release; walls of a graph can be added."),
            "threads": ("count", "Threads seen in it."),
            "compute_max": ("ns", "Computing of the slowest thread."),
            "compute_sum": ("ns", "Computing of all threads, summed."),
            "wait_sum": ("ns", "Waiting of all threads, summed."),
            "complete": ("bool", "Seen on all threads, nothing lost next to it."),
        },
    ),
    "threads": (
        "A thread that left records of its own.",
        {
            "tid": ("id", "Thread."),
            "name": ("text", "Its name."),
            "ops": ("count", "Operators that it took part in."),
            "compute_ns": ("ns", "Computing, summed."),
            "wait_ns": ("ns", "Waiting in barriers, summed."),
            "first_ns": ("ns", "Its first record."),
            "last_ns": ("ns", "Its last record."),
        },
    ),
    "sched": (
        "A stretch of a thread's time.",
        {
            "tid": ("id", "Thread."),
            "begin_ns": ("ns", "Begin."),
            "end_ns": ("ns", "End."),
            "state": ("text", "running, runnable, blocked or unknown."),
            "reason": ("text", "Why: preempted, sleeping, woken, ..."),
            "cpu": ("id", "CPU that it ran on, or left; -1 not known."),
            "by_tid": ("id", "Thread that was given its CPU; 0 idle, -1 none."),
            "by_pid": ("id", "Process of that thread."),
            "by_prio": ("number", "Kernel priority of it: 120 + nice; below 100 real time."),
            "by_name": ("text", "Name of it."),
            "by_kernel": ("bool", "It is a thread of the kernel."),
            "migrated": ("bool", "It came from another CPU."),
        },
    ),
    "op_sched": (
        "What the scheduler did to a row of ops, which has the same number.",
        {
            "running_ns": ("ns", "On a CPU, between begin and release."),
            "runnable_ns": ("ns", "Waiting for a CPU."),
            "behind_own_ns": ("ns", "Of that, behind another thread of the target."),
            "behind_other_ns": ("ns", "Of that, behind another process."),
            "blocked_ns": ("ns", "Asleep."),
            "compute_running_ns": ("ns", "On a CPU, between begin and end."),
            "compute_runnable_ns": ("ns", "Waiting for a CPU, between begin and end."),
            "spinning_ns": ("ns", "On a CPU, between end and release."),
            "migrations": ("count", "Times that it came to another CPU."),
            "involuntary": ("count", "Times that its CPU was taken away."),
        },
    ),
    "faults": (
        "A major page fault, or minor ones of a thread that follow each other.",
        {
            "ts_ns": ("ns", "The first one began."),
            "end_ns": ("ns", "The last one ended."),
            "tid": ("id", "Thread."),
            "address": ("address", "Of the first one."),
            "last": ("address", "Of the last one."),
            "faults": ("count", "How many."),
            "major": ("bool", "The page had to be read, or the fault had to wait for it."),
            "held_ns": ("ns", "Time inside the faults."),
            "tensor": ("text", "Tensor at the first address; empty for none."),
            "kind": ("text", "What that tensor is: weight, cache, ...; empty for none."),
            "file": ("text", "File that is mapped there; empty for none."),
            "file_offset": ("bytes", "Place in that file; -1 none."),
            "graph_id": ("id", "Graph that the thread ran when the first one began; -1 none."),
            "node_id": ("id", "Node that it ran; -1 none."),
        },
    ),
    "reads": (
        "A read that a thread handed to the block layer.",
        {
            "ts_ns": ("ns", "Handed over."),
            "tid": ("id", "Thread that asked."),
            "file": ("text", "File; empty if it is not known."),
            "file_offset": ("bytes", "Place in it."),
            "bytes": ("bytes", "How much."),
            "ino": ("id", "Inode of the file."),
            "tensor": ("text", "Tensor at that place; empty for none."),
            "graph_id": ("id", "Graph that the thread ran; -1 none."),
            "node_id": ("id", "Node that it ran; -1 none."),
        },
    ),
    "residence": (
        "A reading of the target's memory from /proc.",
        {
            "ts_ns": ("ns", "When."),
            "rss": ("bytes", "Resident."),
            "anon": ("bytes", "Of that, of its own."),
            "file": ("bytes", "Of that, of files."),
            "read": ("bytes", "Read from disk so far."),
            "major": ("count", "Major faults so far."),
            "minor": ("count", "Minor faults so far."),
        },
    ),
    "experts": (
        "An expert that a token was routed to.",
        {
            "graph_id": ("id", "Graph."),
            "node_id": ("id", "First of the nodes that compute with it (gate, up, down)."),
            "layer": ("count", "Layer; -1 none."),
            "row": ("count", "Place of the token among those that this layer computed, from 0."),
            "token": ("count", "Place of the token in its call's batch, from 0; -1 not known."),
            "seq": ("id", "llama_seq_id of the token; -1 not known."),
            "slot": ("count", "Place of the expert in the router's list, the likeliest first."),
            "expert": ("id", "Number of the expert."),
        },
    ),
    "expert_weights": (
        "One expert's part of a tensor of experts' weights.",
        {
            "tensor": ("text", "Name of the tensor."),
            "layer": ("count", "Layer; -1 none."),
            "expert": ("id", "Number of the expert."),
            "bytes": ("bytes", "Its size."),
            "address": ("address", "Its begin in the target's memory; -1 not known."),
            "file_offset": ("bytes", "Its place in the file it is mapped from; -1 none."),
        },
    ),
    "system_counters": (
        "A reading of a counter of the whole system (uncore, `--counters system:NAME`).",
        {
            "ts_ns": ("ns", "When."),
            "name": ("text", "The counter, as it was asked for."),
            "value": ("number", "Growth since the first reading, in its unit, scaled for turns."),
            "unit": ("text", "Unit that sysfs names; empty for events."),
            "running": ("ratio", "Part of the time until now that it was counted."),
        },
    ),
    "frequency": (
        "A change of a CPU's clock, as it was read.",
        {
            "ts_ns": ("ns", "When."),
            "cpu": ("id", "Number of the CPU."),
            "khz": ("kHz", "Clock, until the next row of that CPU."),
        },
    ),
    "throttling": (
        "A reading that found the target's cgroup throttled anew; the first one is the begin.",
        {
            "ts_ns": ("ns", "When."),
            "periods": ("count", "Periods of the quota so far."),
            "throttled": ("count", "Periods so far in which it was stopped."),
            "throttled_ns": ("ns", "For how long so far, CPUs summed."),
        },
    ),
}
COLUMNS["copies"] = (
    "A copy to, from or between tensors; a copy of a tensor has one to or from host memory inside.",
    {
        "copy_id": ("id", "Number; the row number."),
        "tid": ("id", "Thread."),
        "function": ("text", "Function that was called."),
        "kind": ("text", "set (from host memory), get (to it), copy or fill."),
        "tensor": ("text", "Tensor that is written; of get and copy the one that is read."),
        "type": ("text", "Its type."),
        "bytes": ("bytes", "How much."),
        "source": (
            "text",
            "Backend whose buffer it comes from; host: no tensor; empty: not known.",
        ),
        "target": ("text", "Backend whose buffer it goes to, likewise."),
        "crosses": ("bool", "It leaves one backend's memory for another's."),
        "is_async": ("bool", "It need not have happened when the function returned."),
        "begin_ns": ("ns", "Entered."),
        "end_ns": ("ns", "Returned."),
        "call_id": ("id", "Call around it; -1 none."),
        "outermost": ("bool", "It lies in no other copy."),
        "cut": ("bool", "Its end was not recorded."),
    },
)
COLUMNS["syncs"] = (
    "A wait for a backend, or for an event of its device.",
    {
        "sync_id": ("id", "Number; the row number."),
        "tid": ("id", "Thread that waited."),
        "backend": ("text", "Name of the backend; empty if it is not known."),
        "address": ("address", "The ggml_backend_t; of an event the device."),
        "event": ("bool", "For an event, not for all that the backend was given."),
        "begin_ns": ("ns", "Entered."),
        "end_ns": ("ns", "Returned."),
        "call_id": ("id", "Call around it; -1 none."),
        "cut": ("bool", "Its end was not recorded."),
    },
)
COLUMNS["backend_work"] = (
    "A call of a function of a backend, or of the library behind it.",
    {
        "work_id": ("id", "Number; the row number."),
        "tid": ("id", "Thread."),
        "kind": ("text", "gemm, send, recv, serve, node or submit."),
        "function": ("text", "Function, as its symbol is."),
        "command": ("text", "RPC: command that a message begins with, or that is served."),
        "bytes": ("bytes", "On the wire; 0 for other kinds."),
        "m": ("count", "Rows of a gemm's result; -1 none."),
        "n": ("count", "Its columns; -1 none."),
        "k": ("count", "Length of its dot products; -1 none."),
        "node": ("count", "Index of the node in the split; -1 none."),
        "socket": ("address", "Which connection; 0 none."),
        "begin_ns": ("ns", "Entered."),
        "end_ns": ("ns", "Returned."),
        "call_id": ("id", "Call around it on its thread; -1 none."),
        "cut": ("bool", "Its end was not recorded."),
    },
)
COLUMNS["backend_ops"] = (
    "An operator that another backend than the CPU computed, or recorded commands of, on the host.",
    {
        "split_id": ("id", "Split."),
        "node_id": ("id", "Node."),
        "how": ("text", "computed, or recorded: it runs later, on a device."),
        "begin_ns": ("ns", "Begin: end of the one before, or begin of the split."),
        "end_ns": ("ns", "End."),
        "library_ns": ("ns", "Inside the library behind the backend, e.g. in gemm."),
    },
)
COLUMNS["empty_ops"] = (
    "Like ops, of an empty node that threads passed a barrier after (older engines).",
    COLUMNS["ops"][1],
)
COLUMNS["empty_walls"] = (
    "Like op_walls, of an empty node that threads passed a barrier after (older engines).",
    COLUMNS["op_walls"][1],
)
# Tables whose columns are named by what was asked for: unit and meaning of each.
NAMED_BY_USER = {"counters": ("number", "Events; of task-clock ns. NaN not known.")}


def described(table: str, column: str) -> tuple[str, str]:
    """Unit and meaning of a column."""
    return COLUMNS[table][1].get(column) or NAMED_BY_USER[table]


_HEAD = """# Tables

`profinfer.open("trace.pf").tables` is a dict of pandas DataFrames; each is an attribute too
(`trace.ops`). `profinfer export trace.pf --csv FOLDER` writes them as files; `--parquet FOLDER`
does too (`pip install 'profinfer[parquet]'`), with unit and meaning in each column's metadata.
Times are CLOCK_MONOTONIC nanoseconds. Ids of one table are row numbers of another:
`trace.nodes.loc[trace.ops.node_id]`. How the numbers are worked out: [metrics](metrics.md).
"""


def as_markdown() -> str:
    """The page ``docs/tables.md``."""
    parts = [_HEAD]
    for table, (row, columns) in COLUMNS.items():
        parts.append(f"\n## {table}\n\n{row}\n\n| column | unit | meaning |\n|---|---|---|\n")
        if table in NAMED_BY_USER:
            columns = {"NAME": NAMED_BY_USER[table]}
        parts += [f"| `{name}` | {unit} | {text} |\n" for name, (unit, text) in columns.items()]
    return "".join(parts)
