"""Layer 2: the probes of what goes on between backends, and inside them on the host, as data.

A few hits a graph and backend; none for copies and waits where all compute in the CPU's own memory.
Names that exist in some engines only are optional. C++ names are of the Itanium ABI; ``_ZL`` begins
those of static functions, which a stripped library has lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from profinfer.probes.spec import Level, ProbeSpec

# Backends that compute in the CPU's own memory: nothing is copied to them, nobody waits for them.
ON_HOST = {"cpu", "blas"}
# What else ggml_backend_NAME_reg and _init stand for: buffers, devices, views of graphs (2026).
_NO_BACKENDS = {"buffer", "dev", "view", "sched"}
_BACKEND = re.compile(r"^ggml_backend_([a-z0-9]+)_(?:reg|init)$")


def backends_apart(functions: Iterable[str]) -> set[str]:
    """Names of the backends with a memory of their own, of which these functions tell."""
    found = {match[1] for name in functions if (match := _BACKEND.match(name))}
    return found - ON_HOST - _NO_BACKENDS


def _spec(role: str, *names: str, arguments: int, optional: bool = True) -> ProbeSpec:
    return ProbeSpec(
        role,
        names,
        Level.graph,
        arguments=arguments,
        returns=True,
        optional=optional,
        apart=True,
    )


def _work(role: str, image: str, *names: str, arguments: int = 0) -> ProbeSpec:
    return ProbeSpec(
        role,
        names,
        Level.graph,
        images=(image,),
        arguments=arguments,
        returns=True,
        every=True,
        many=True,
        optional=True,
    )


# What an RPC server does for a client: methods of rpc_server, C++ names by length.
_SERVED = (
    *("graph_compute", "graph_recompute", "set_tensor", "set_tensor_hash", "get_tensor"),
    *("copy_tensor", "memset_tensor", "init_tensor", "alloc_buffer", "free_buffer"),
    "buffer_clear",
)

BACKEND_SPECS = (
    # void ggml_backend_synchronize(ggml_backend_t), since 2023
    _spec("sync", "ggml_backend_synchronize", arguments=1, optional=False),
    # void ggml_backend_event_synchronize(ggml_backend_event_t), since 2024
    _spec("sync.event", "ggml_backend_event_synchronize", arguments=1),
    # void ggml_backend_tensor_set(tensor, const void * data, size_t offset, size_t size)
    _spec("copy.set", "ggml_backend_tensor_set", arguments=4, optional=False),
    # void ggml_backend_tensor_get(tensor, void * data, size_t offset, size_t size)
    _spec("copy.get", "ggml_backend_tensor_get", arguments=4, optional=False),
    # the same with ggml_backend_t before it
    _spec("copy.set.async", "ggml_backend_tensor_set_async", arguments=5),
    _spec("copy.get.async", "ggml_backend_tensor_get_async", arguments=5),
    # (tensor, data, offset, size, n_copies, strides): since 2026
    _spec("copy.set.2d", "ggml_backend_tensor_set_2d", arguments=5),
    _spec("copy.get.2d", "ggml_backend_tensor_get_2d", arguments=5),
    _spec("copy.set.2d.async", "ggml_backend_tensor_set_2d_async", arguments=6),
    _spec("copy.get.2d.async", "ggml_backend_tensor_get_2d_async", arguments=6),
    # void ggml_backend_tensor_memset(tensor, uint8_t value, size_t offset, size_t size)
    _spec("copy.fill", "ggml_backend_tensor_memset", arguments=4),
    # void ggml_backend_tensor_copy(const tensor * src, tensor * dst)
    _spec("copy.tensor", "ggml_backend_tensor_copy", arguments=2, optional=False),
    # void ggml_backend_tensor_copy_async(backend_src, backend_dst, src, dst)
    _spec("copy.tensor.async", "ggml_backend_tensor_copy_async", arguments=4),
    # bool X(backend_src, backend_dst, src, dst): the scheduler calls the backend's own
    ProbeSpec(
        "copy.backend",
        ("*ggml_backend_*_cpy_tensor_async*",),
        Level.graph,
        apart=True,
        arguments=4,
        returns=True,
        every=True,
        many=True,
        optional=True,
    ),
    # cblas_sgemm(order, transA, transB, m, n, k, ...)
    _work("work.gemm", "blas", "cblas_sgemm", arguments=6),
    # bool socket_t::send_data(const void *, size_t); before 2026 a function of a descriptor
    _work("work.send", "ggml-rpc", "_ZN8socket_t9send_dataEPKvm", "_ZL9send_data*", arguments=3),
    _work("work.recv", "ggml-rpc", "_ZN8socket_t9recv_dataEPvm", "_ZL9recv_data*", arguments=3),
    _work("work.serve", "ggml-rpc", *(f"_ZN10rpc_server{len(n)}{n}E*" for n in _SERVED)),
    # bool ggml_vk_build_graph(context, cgraph, int node_idx, ...): records the commands of a node
    _work("work.node", "ggml-vulkan", "_Z*19ggml_vk_build_graphP*", arguments=3),
    # void ggml_vk_submit(vk_context &, vk::Fence): hands recorded commands to the device
    _work("work.submit", "ggml-vulkan", "_Z*14ggml_vk_submitR*"),
)
