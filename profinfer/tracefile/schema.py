"""Layer 3: constants and numpy dtypes of the trace file.

Mirror of ``bpf/events.h``; ``tests/unit/test_abi.py`` compiles the header and compares
every size and offset. May import numpy only.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

# --- file frame -----------------------------------------------------------------------
MAGIC = b"\x89PF\r\n\x1a\n\x00"
MAJOR = 1
MINOR = 4  # 1: SCHED, SEQS, compact OPS; 2: EXPERTS, COPY, SYNC, WORK; 3: PACKED; 4: numbers
CHUNK_MAGIC = 0x4B4E4843  # "CHNK"

FILE_HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("major", "<u2"),
        ("minor", "<u2"),
        ("header_size", "<u4"),  # offset of the first chunk
        ("features", "<u8"),
        ("meta_len", "<u4"),
        ("meta_crc", "<u4"),
        ("header_crc", "<u4"),  # crc32 of the bytes before this field
        ("pad", "<u4"),
    ]
)

CHUNK_HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("kind", "<u2"),
        ("flags", "<u2"),
        ("length", "<u8"),  # payload bytes, before padding to 8
        ("seq", "<u4"),  # 0, 1, 2, ...: a missing chunk is seen
        ("payload_crc", "<u4"),
        ("header_crc", "<u4"),  # crc32 of the bytes before this field
        ("pad", "<u4"),
    ]
)


class ChunkKind(IntEnum):
    """What a chunk holds. Readers skip kinds they do not know."""

    RING = 1  # ring-buffer entries as the kernel wrote them, 8-byte entry headers included
    UPDATE = 2  # JSON: facts learnt after the header was written
    LOSS = 3  # JSON: counters of the BPF program so far
    NOTE = 4  # JSON: something the recorder did or saw, with its time
    TRAILER = 5  # JSON: end of the recording
    PACKED = 6  # as RING, packed


# --- ring records -----------------------------------------------------------------------
RING_BUSY = 1 << 31
RING_DISCARD = 1 << 30

PTRS_PER_RECORD = 64
OPS_PER_BATCH = 512
RUNS_PER_RECORD = 32
COMM_LEN = 16
MAX_COUNTERS = 6
MAX_EXPERTS_USED = 1024
NOT_COUNTED = (1 << 64) - 1


class Kind(IntEnum):
    """Record kinds, ``enum pf_kind``."""

    CALL_BEGIN = 1
    CALL_END = 2
    SAMPLE_BEGIN = 3
    SAMPLE_END = 4
    SPLIT_BEGIN = 5
    SPLIT_END = 6
    GRAPH_BEGIN = 7
    GRAPH_END = 8
    OPS = 9
    PTRS = 10
    TENSOR = 11
    BUFFER = 12
    THREAD = 13
    WARMUP = 14
    SEQS = 15
    SCHED = 16
    COUNTS = 17
    FAULT = 18
    READ = 19
    EXPERTS = 20
    COPY_BEGIN = 21
    SYNC_BEGIN = 22
    WORK_BEGIN = 23
    BACKEND_END = 24
    REQUEST = 28


class OpKind(IntEnum):
    """Kinds of operator record, ``enum pf_op_kind``."""

    END = 1
    BEGIN = 2
    BARRIER = 3
    ENTER = 4
    LEAVE = 5


# Of begins and ends: a number of 1 to NUMBERS in the upper bits of the flags, 0 for none.
NUMBER_SHIFT = 4
NUMBERS = 4095

CALL_ENCODE = 1
SEQS_CUT = 1
WARMUP_OFF, WARMUP_ON, WARMUP_RESET = 0, 1, 2
SPLIT_CHANGED, SPLIT_PARTIAL, SPLIT_READ = 1, 2, 4
GRAPH_CHANGED = 1
GRAPH_PARTIAL = 2
GRAPH_NO_OPS = 4
OPS_LAST = 1
OPS_COMPACT = 2
# The compact form: a code above the time; the code is a step of the loop index, or LEAVE.
OPS_DT_BITS = 27
OPS_MAX_STEP = 30
OPS_CODE_LEAVE = 31
PTRS_LEAFS = 1
SCHED_OUT, SCHED_IN, SCHED_WAKE, SCHED_NEW, SCHED_PREEMPT, SCHED_KERNEL = 1, 2, 4, 8, 16, 32
FAULT_MAJOR = 1
READ_WRITE = 1
COPY_SET, COPY_GET, COPY_TENSOR, COPY_FILL = 1, 2, 3, 4
COPY_ASYNC = 1
COPY_WHOLE = (1 << 64) - 1
SYNC_EVENT = 1
REQUEST_LAUNCH = 1

HDR = np.dtype([("kind", "<u2"), ("flags", "<u2"), ("tid", "<u4"), ("ts", "<u8")])
_H = HDR.descr

CALL = np.dtype(
    [
        *_H,
        ("ctx", "<u8"),
        ("probe", "<u4"),
        ("n_tokens", "<i4"),
        ("pos_first", "<i4"),
        ("pos_last", "<i4"),
        ("n_seqs", "<i4"),
        ("seq", "<i4"),
    ]
)
RUN = np.dtype([("seq", "<i4"), ("pos", "<i4"), ("n_tokens", "<u4"), ("n_outputs", "<u4")])
SEQS = np.dtype(
    [
        *_H,
        ("ctx", "<u8"),
        ("n_tokens", "<u4"),
        ("n_shared", "<u4"),
        ("n_runs", "<u4"),
        ("pad", "<u4"),
        ("run", RUN, (RUNS_PER_RECORD,)),
    ]
)
END = np.dtype([*_H, ("probe", "<u4"), ("value", "<i4")])
MARK = np.dtype([*_H, ("ctx", "<u8"), ("probe", "<u4"), ("value", "<i4")])
SPLIT = np.dtype(
    [
        *_H,
        ("backend", "<u8"),
        ("cgraph", "<u8"),
        ("uid", "<u8"),
        ("get_name", "<u8"),
        ("guid", "V16"),
        ("n_nodes", "<u4"),
        ("probe", "<u4"),
    ]
)
GRAPH = np.dtype(
    [
        *_H,
        ("cgraph", "<u8"),
        ("uid", "<u8"),
        ("gen", "<u8"),
        ("n_nodes", "<u4"),
        ("n_threads", "<u4"),
        ("walk_ns", "<u4"),
        ("probe", "<u4"),
    ]
)
OP = np.dtype([("dt", "<u4"), ("what", "<u4")])
OP_COMPACT = np.dtype("<u4")
OPS = np.dtype([*_H, ("cgraph", "<u8"), ("seq", "<u4"), ("n", "<u4")])  # then n x OP or OP_COMPACT
# then n x n_counters u64
COUNTS = np.dtype(
    [
        *_H,
        ("seq", "<u4"),
        ("n", "<u4"),
        ("n_counters", "<u4"),
        ("pad", "<u4"),
        ("enabled", "<u8", (MAX_COUNTERS,)),
        ("running", "<u8", (MAX_COUNTERS,)),
    ]
)
PTRS = np.dtype(
    [
        *_H,
        ("cgraph", "<u8"),
        ("gen", "<u8"),
        ("first", "<u4"),
        ("n", "<u4"),
        ("ptr", "<u8", (PTRS_PER_RECORD,)),
    ]
)
THREAD = np.dtype([*_H, ("comm", f"S{COMM_LEN}")])
SCHED = np.dtype(
    [
        *_H,
        ("cpu", "<u4"),
        ("state", "<u4"),
        ("other", "<u4"),
        ("other_tgid", "<u4"),
        ("prio", "<i4"),
        ("pad", "<u4"),
        ("comm", f"S{COMM_LEN}"),
    ]
)
FAULT = np.dtype(
    [*_H, ("addr", "<u8"), ("last", "<u8"), ("n", "<u4"), ("dt", "<u4"), ("ns", "<u8")]
)
# then n x n_used EXPERT_ID
EXPERTS = np.dtype(
    [
        *_H,
        ("cgraph", "<u8"),
        ("node", "<u4"),
        ("n_used", "<u4"),
        ("n_tokens", "<u4"),
        ("first", "<u4"),
        ("n", "<u4"),
        ("ns", "<u4"),
    ]
)
EXPERT_ID = np.dtype("<i4")
READ = np.dtype([*_H, ("ino", "<u8"), ("offset", "<u8"), ("dev", "<u4"), ("bytes", "<u4")])
SYNC = np.dtype(
    [
        *_H,
        ("backend", "<u8"),
        ("get_name", "<u8"),
        ("guid", "V16"),
        ("probe", "<u4"),
        ("pad", "<u4"),
    ]
)
WORK = np.dtype([*_H, ("value", "<u8", (4,)), ("probe", "<u4"), ("pad", "<u4")])

FIXED: dict[Kind, np.dtype[np.void]] = {
    Kind.CALL_BEGIN: CALL,
    Kind.CALL_END: END,
    Kind.SAMPLE_BEGIN: END,
    Kind.SAMPLE_END: END,
    Kind.SPLIT_BEGIN: SPLIT,
    Kind.SPLIT_END: END,
    Kind.GRAPH_BEGIN: GRAPH,
    Kind.GRAPH_END: END,
    Kind.PTRS: PTRS,
    Kind.THREAD: THREAD,
    Kind.WARMUP: MARK,
    Kind.SEQS: SEQS,
    Kind.SCHED: SCHED,
    Kind.FAULT: FAULT,
    Kind.READ: READ,
    Kind.SYNC_BEGIN: SYNC,
    Kind.WORK_BEGIN: WORK,
    Kind.BACKEND_END: END,
    Kind.REQUEST: MARK,
}


def tensor_dtype(raw_size: int) -> np.dtype[np.void]:
    """Record of kind TENSOR or BUFFER whose raw struct is ``raw_size`` bytes."""
    return np.dtype([*_H, ("addr", "<u8"), ("gen", "<u8"), ("raw", f"V{raw_size}")])


def copy_dtype(raw_size: int) -> np.dtype[np.void]:
    """Record of kind COPY_BEGIN whose raw tensor is ``raw_size`` bytes."""
    return np.dtype(
        [
            *_H,
            ("backend", "<u8"),
            ("src", "<u8"),
            ("dst", "<u8"),
            ("bytes", "<u8"),
            ("src_owner", "<u8"),
            ("dst_owner", "<u8"),
            ("what", "<u4"),
            ("probe", "<u4"),
            ("raw", f"V{raw_size}"),
        ]
    )


# --- counters of the BPF program ----------------------------------------------------------
CNT_SENT = 0
CNT_LOST = 32
CNT_OP_RECORDS = 64
CNT_OP_LOST = 65
CNT_NO_SLOT = 66
CNT_UNREADABLE = 67
CNT_TOO_MANY_NODES = 68
CNT_CALL_NS = 69
CNT_STEPS = 70
CNT_STEP_NS = 71
CNT_THREADS = 72
CNT_NOT_COUNTED = 73
CNT_NODES = 74
CNT_NODE_THREADS = 75
CNT_STEP_NODES = 76
CNT_SCHED_NS = 77
CNT_EXPERTS_UNREAD = 78
CNT_OP_PASSED = 79
CNT_COUNT = 80
