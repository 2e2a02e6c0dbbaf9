"""Layer 2: the probes of llama.cpp and ggml, as data.

Operator probes are no functions of a fixed name: ``operator_site`` finds them.
"""

from __future__ import annotations

from profinfer.probes.spec import Level, ProbeSpec

SPECS = (
    # int32_t llama_decode(llama_context *, llama_batch by value)
    ProbeSpec(
        "call.batch",
        ("llama_decode", "llama_encode"),
        Level.token,
        arguments=1,
        stack_arguments=True,
        returns=True,
        every=True,
    ),
    # int32_t llama_process(llama_context *, enum llama_process_type, llama_batch_ext *)
    ProbeSpec("call.process", ("llama_process",), Level.token, arguments=3, returns=True),
    # common_sampler_sample calls llama_sampler_sample in some programs; nested calls are
    # folded when the trace is read. llama_sampler_apply is called by both, many times.
    ProbeSpec(
        "sample",
        ("_Z21common_sampler_sample*", "llama_sampler_sample"),
        Level.token,
        returns=True,
        every=True,
    ),
    # void llama_set_warmup(llama_context *, bool)
    ProbeSpec("warmup.set", ("llama_set_warmup",), Level.token, arguments=2),
    # void llama_perf_context_reset(llama_context *): programs call it after a warm-up run
    ProbeSpec("warmup.reset", ("llama_perf_context_reset",), Level.token, arguments=1),
    # enum ggml_status ggml_backend_graph_compute_async(ggml_backend_t, ggml_cgraph *)
    ProbeSpec(
        "split", ("ggml_backend_graph_compute_async",), Level.graph, arguments=2, returns=True
    ),
    # enum ggml_status ggml_graph_compute(ggml_cgraph *, ggml_cplan *)
    ProbeSpec("graph", ("ggml_graph_compute",), Level.graph, arguments=2, returns=True),
    # enum ggml_status ggml_backend_sched_graph_compute_async(ggml_backend_sched_t, ggml_cgraph *)
    ProbeSpec("leafs", ("ggml_backend_sched_graph_compute_async",), Level.graph, arguments=2),
    # llama-server. int server_queue::post(server_task &&, bool), in older ones by value, which is
    # the same pointer. A request with several prompts takes the vector form, of which the first is
    # seen. The task's and the slot's id are the first fields of their structs (tools/server/
    # server-task.h, server-context.cpp; the same since examples/server of 2024).
    ProbeSpec(
        "request.post",
        ("_ZN12server_queue4postEO11server_taskb", "_ZN12server_queue4postE11server_taskb"),
        Level.token,
        arguments=2,
        within="server",
    ),
    ProbeSpec(
        "request.posts",
        (
            "_ZN12server_queue4postEOSt6vectorI11server_taskSaIS1_EEb",
            "_ZN12server_queue4postERSt6vectorI11server_taskSaIS1_EEb",
        ),
        Level.token,
        arguments=2,
        within="server",
    ),
    # bool launch_slot_with_task(server_slot &, server_task &&)
    ProbeSpec(
        "request.launch",
        (
            "_ZN19server_context_impl21launch_slot_with_task*",
            "_ZN14server_context21launch_slot_with_task*",
        ),
        Level.token,
        arguments=3,
        within="server",
    ),
)

SAMPLER_FALLBACK = ProbeSpec("sample", ("llama_sampler_apply",), Level.token, returns=True)

# Where one operator begins on a thread, for engines whose graph loop cannot be read:
# f(const ggml_compute_params *, ggml_tensor *, ...), the first tensor being the first node.
OPERATOR_ENTRY = ("ggml_compute_forward", "ggml_cpu_extra_compute_forward")
FUSED_ENTRIES = ("ggml_compute_forward_rms_norm_mul_fused",)
