"""Traces of a small mixture of experts, whose router chooses what a test says."""

from __future__ import annotations

from collections.abc import Sequence

from builders import Graph, GraphTruth, Node, TraceBuilder

# Of a layer: probabilities, sorted, the first of them, up, down, sum.
PER_LAYER, PLACE = 6, 3
Choices = Sequence[Sequence[Sequence[int]]]  # [layer][token][slot]


class MoeRun:
    """Calls of one context and sequence, one graph each.

    Attributes:
        builder: the trace.
        graphs: the truth of each call's graph.
        stride: bytes of one expert in each of the two tensors of a layer.
    """

    def __init__(
        self, *, layers: int, experts: int, used: int, base: int = 0x7E00_0000_0000,
        recorded: bool = True, **changes: object,
    ) -> None:  # fmt: skip
        self.layers, self.experts, self.used, self.base = layers, experts, used, base
        said = {"recorded": True} if recorded else {"recorded": False, "why": "--no-experts"}
        self.stride = 64 * 32 // 32 * 20  # q4_1
        path, size = "/models/moe.gguf", 2 * layers * experts * self.stride
        memory = {
            "recorded": True,
            "reads": {"recorded": True},
            "mappings": [[base, base + size, 0, path]],
            "files": [{"path": path, "dev": [254, 0], "ino": 99, "size": size}],
        }
        self.builder = TraceBuilder(experts=said, memory=memory, **changes)
        self.builder.thread(77, 900_000_000, "llama")
        self.graphs: list[GraphTruth] = []
        self._ts = 1_000_000_000
        self._position = 0
        self._shapes: dict[tuple[int, ...], Graph] = {}
        self._last: dict[tuple[int, int], int] = {}
        self._weights = [
            [self._weight(layer, part) for part in ("up", "down")] for layer in range(layers)
        ]

    def _weight(self, layer: int, part: str) -> Node:
        name = f"blk.{layer}.ffn_{part}_exps.weight"
        at = self.base + (2 * layer + (part == "down")) * self.stride * self.experts
        return Node(name, "NONE", "q4_1", (64, 32, self.experts), flags=0, data=at)

    def address(self, layer: int, part: int, expert: int) -> int:
        """Where an expert's weights begin; part 0 is up, 1 down."""
        return (self._weights[layer][part].data or 0) + expert * self.stride

    def graph(self, rows: Sequence[int]) -> Graph:
        """The graph that computes so many tokens in each layer."""
        key = tuple(rows)
        if key not in self._shapes:
            table = Node("token_embd.weight", "NONE", "q8_0", (64, 256), flags=0)
            tokens = Node("inp_tokens", "NONE", "i32", (rows[0],), flags=1)
            x = Node("embd", "GET_ROWS", "f32", (64, rows[0]), (table, tokens))
            nodes = [x]
            for layer, n in enumerate(rows):
                probs = Node(f"ffn_moe_probs-{layer}", "SOFT_MAX", "f32", (self.experts, n), (x,))
                order = Node(
                    f"ffn_moe_argsort-{layer}", "ARGSORT", "i32", (self.experts, n), (probs,)
                )
                ids = Node(
                    f"ffn_moe_topk-{layer}", "VIEW", "i32", (self.used, n), (order,),
                    view_src=order, nb=(4, 4 * self.experts, 4 * self.experts * n, 0),
                )  # fmt: skip
                up, down = self._weights[layer]
                up = Node(f"ffn_moe_up-{layer}", "MUL_MAT_ID", "f32", (32, self.used, n),
                          (up, x, ids))  # fmt: skip
                down = Node(f"ffn_moe_down-{layer}", "MUL_MAT_ID", "f32", (64, self.used, n),
                            (down, up, ids))  # fmt: skip
                x = Node(f"ffn_moe_out-{layer}", "ADD", "f32", (64, n), (down, down))
                nodes += [probs, order, ids, up, down, x]
            nodes.append(Node("result_output", "SCALE", "f32", (64, rows[-1]), (x,)))
            leafs = [table, tokens, *(w for pair in self._weights for w in pair)]
            self._shapes[key] = Graph(nodes, leafs, 0x6000_0000 + 0x100 * len(self._shapes))
        return self._shapes[key]

    def decode(
        self, choices: Choices, *, slow_ns: int = 0, leave_out: Sequence[int] = (), piece: int = 99,
        read: int = 0,
    ) -> None:  # fmt: skip
        """One call of as many tokens as the first layer has choices.

        Args:
            choices: what each layer's router chooses.
            slow_ns: more for each expert that was not needed by one of the two passes before; the
                thread has a major fault on its weights then.
            leave_out: layers whose ids are not recorded.
            piece: tokens of a record.
            read: bytes of the first layer's weights that a disk reads meanwhile.
        """
        builder, number = self.builder, len(self.graphs)
        graph = self.graph([len(layer) for layer in choices])
        n = len(choices[0])
        builder.call_begin(
            77, self._ts, n_tokens=n, pos_first=self._position, pos_last=self._position + n - 1,
            seq=0,
        )  # fmt: skip
        away = [
            [e for e in sorted({e for row in layer for e in row})
             if number - self._last.get((at, e), -99) > 2]
            for at, layer in enumerate(choices)
        ]  # fmt: skip

        def takes(node: int, _thread: int) -> int:
            layer, part = divmod(node - 1, PER_LAYER)
            if layer >= self.layers or graph.nodes[node].op != "MUL_MAT_ID":
                return 20_000
            return 50_000 + (slow_ns * len(away[layer]) if part == PLACE + 1 else 0)

        truth = builder.run_graph(graph, begin=self._ts + 500, tids=(77,), compute=takes)
        ends = {op.node: op for op in truth.ops}
        for at, layer in enumerate(choices):
            node = 1 + PER_LAYER * at + PLACE
            for first in range(0, n, piece) if at not in leave_out else ():
                if part := layer[first : first + piece]:
                    builder.experts(77, ends[node].end_ns + first, part, node=node, first=first,
                                    cgraph=graph.cgraph, n_tokens=len(layer))  # fmt: skip
            for expert in away[at] if slow_ns else ():
                builder.fault(77, ends[node + 1].begin_ns + 10, self.address(at, 0, expert) + 99,
                              ns=slow_ns // 2, major=True)  # fmt: skip
            self._last |= {(at, e): number for row in layer for e in row}
        if read:
            builder.read(77, truth.begin_ns + 600, 0, read)
        builder.call_end(77, truth.end_ns + 300)
        self._ts = truth.end_ns + 20_000
        self._position += n
        self.graphs.append(truth)
