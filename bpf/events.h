/* Wire format of profinfer: what the BPF programs put in the ring buffer.
 *
 * C99, no kernel include, so that a test compiles it with cc and compares every
 * offset with profinfer/tracefile/schema.py. All fields little endian, fixed
 * width, no holes. A record is one ring-buffer entry and begins with pf_hdr.
 * Timestamps are CLOCK_MONOTONIC nanoseconds, tids are those of the init pid
 * namespace.
 */
#ifndef PROFINFER_EVENTS_H
#define PROFINFER_EVENTS_H

#ifndef PF_TENSOR_SIZE   /* sizeof(struct ggml_tensor) of the engine */
#define PF_TENSOR_SIZE 336
#endif
#ifndef PF_BUFFER_SIZE   /* bytes read of struct ggml_backend_buffer */
#define PF_BUFFER_SIZE 128
#endif

#define PF_PTRS_PER_RECORD 64
#define PF_OPS_PER_BATCH 512
#define PF_RUNS_PER_RECORD 32
#define PF_COMM_LEN 16
#define PF_MAX_COUNTERS 6
#define PF_MAX_EXPERTS_USED 1024 /* all of them, in a warm-up */

enum pf_kind {
    PF_CALL_BEGIN = 1,   /* pf_call: llama_decode, llama_encode, llama_process entered   */
    PF_CALL_END = 2,     /* pf_end                                                       */
    PF_SAMPLE_BEGIN = 3, /* pf_end (value unused): a sampler was entered                 */
    PF_SAMPLE_END = 4,   /* pf_end                                                       */
    PF_SPLIT_BEGIN = 5,  /* pf_split: ggml_backend_graph_compute_async entered           */
    PF_SPLIT_END = 6,    /* pf_end                                                       */
    PF_GRAPH_BEGIN = 7,  /* pf_graph: ggml_graph_compute entered, its nodes read         */
    PF_GRAPH_END = 8,    /* pf_end                                                       */
    PF_OPS = 9,          /* pf_ops: a batch of one thread's operator records             */
    PF_PTRS = 10,        /* pf_ptrs: a piece of a graph's nodes[] or leafs[]             */
    PF_TENSOR = 11,      /* pf_tensor: raw struct ggml_tensor, new or changed            */
    PF_BUFFER = 12,      /* pf_buffer: raw struct ggml_backend_buffer, new or changed    */
    PF_THREAD = 13,      /* pf_thread: first event of a thread                           */
    PF_WARMUP = 14,      /* pf_mark: where warm-up begins or ends                        */
    PF_SEQS = 15,        /* pf_seqs: which sequences the tokens of a batch belong to      */
    PF_SCHED = 16,       /* pf_sched: a thread of the target left or got a CPU, or woke  */
    PF_COUNTS = 17,      /* pf_counts: what counters read at the records of a batch       */
    PF_FAULT = 18,       /* pf_fault: page faults of a thread of the target               */
    PF_READ = 19,        /* pf_read: a read from a disk that the target asked for         */
    PF_EXPERTS = 20,     /* pf_experts: which experts the router chose for tokens of a batch */
    PF_COPY_BEGIN = 21,  /* pf_copy: data is moved to, from or between backends           */
    PF_SYNC_BEGIN = 22,  /* pf_sync: ggml_backend_synchronize entered                      */
    PF_WORK_BEGIN = 23,  /* pf_work: a function of a backend, or of its library, entered   */
    PF_BACKEND_END = 24, /* pf_end: of any of these three                                */
    PF_REQUEST = 28,     /* pf_mark: a server's task was queued, or given to a slot       */
    PF_KIND_COUNT = 32,
};

struct pf_hdr {
    unsigned short kind;
    unsigned short flags;
    unsigned int tid;
    unsigned long long ts;
};

/* Begins and ends have a number in the upper bits of their flags: +1 from one record to the next of
 * the same thread and kind of span (PF_NUMBERED), those lost included, so that what is missing
 * between two is seen and no begin is taken together with the end of another span. 1 to
 * PF_NUMBERS, then 1 again; 0: this one has none. */
#define PF_NUMBER_SHIFT 4
#define PF_NUMBERS 4095
#define PF_NUMBERED 5            /* calls, samples, splits, graphs; copies, waits and work */

#define PF_CALL_ENCODE 1         /* flags: an encoder ran, no KV cache is written */

struct pf_call {
    struct pf_hdr h;
    unsigned long long ctx;      /* struct llama_context * */
    unsigned int probe;          /* index in the probe table of the metadata */
    int n_tokens;                /* -1: could not be read */
    int pos_first;               /* -1: not given by the caller */
    int pos_last;
    int n_seqs;                  /* 1: all tokens are of `seq`; -1: PF_SEQS records tell, or nothing */
    int seq;                     /* -1: not known, or several */
};

/* Consecutive tokens of a batch that belong to the same sequence. */
struct pf_run {
    int seq;
    int pos;                     /* position of its first token, -1: not given */
    unsigned int n_tokens;
    unsigned int n_outputs;      /* tokens whose logits or embeddings are asked for */
};

#define PF_SEQS_CUT 1            /* flags: the rest of the batch could not be read */

struct pf_seqs {
    struct pf_hdr h;             /* tid and ts are those of the call's PF_CALL_BEGIN */
    unsigned long long ctx;
    unsigned int n_tokens;       /* of the whole batch */
    unsigned int n_shared;       /* tokens so far that belong to further sequences too */
    unsigned int n_runs;         /* valid entries */
    unsigned int pad;
    struct pf_run run[PF_RUNS_PER_RECORD];
};

struct pf_end {
    struct pf_hdr h;
    unsigned int probe;          /* of the entry, so that begin and end pair */
    int value;                   /* return value */
};

enum pf_warmup {
    PF_WARMUP_OFF = 0,           /* llama_set_warmup(ctx, false) */
    PF_WARMUP_ON = 1,            /* llama_set_warmup(ctx, true) */
    PF_WARMUP_RESET = 2,         /* llama_perf_context_reset(ctx): what ran before was not meant */
};

#define PF_REQUEST_LAUNCH 1      /* flags: given to a slot; else queued */

struct pf_mark {
    struct pf_hdr h;
    unsigned long long ctx;      /* of a request: id of the slot; all ones when queued */
    unsigned int probe;
    int value;                   /* enum pf_warmup; of a request: id of the task */
};

#define PF_SPLIT_CHANGED 1       /* flags: a new definition was read before this record       */
#define PF_SPLIT_PARTIAL 2       /* flags: the definition has holes                            */
#define PF_SPLIT_READ 4          /* flags: its nodes are known (CPU: PF_GRAPH_BEGIN has them)   */

struct pf_split {
    struct pf_hdr h;             /* ts: after the nodes were read */
    unsigned long long backend;  /* ggml_backend_t */
    unsigned long long cgraph;
    unsigned long long uid;      /* 0: this engine has none */
    unsigned long long get_name; /* backend->iface.get_name, names the backend by symbol */
    unsigned char guid[16];
    unsigned int n_nodes;
    unsigned int probe;
};

#define PF_GRAPH_CHANGED 1       /* flags: a new definition was read before this record   */
#define PF_GRAPH_PARTIAL 2       /* flags: the definition has holes (lost or unreadable)  */
#define PF_GRAPH_NO_OPS 4        /* flags: its operators are not wanted (record --tokens)   */

struct pf_graph {
    struct pf_hdr h;             /* ts: after the nodes were read */
    unsigned long long cgraph;
    unsigned long long uid;
    unsigned long long gen;      /* definition this graph runs: ts of the walk that read it */
    unsigned int n_nodes;
    unsigned int n_threads;      /* cplan->n_threads; OpenMP may give fewer */
    unsigned int walk_ns;        /* profinfer's own time reading the definition */
    unsigned int probe;
};

/* What an operator record says. */
enum pf_op_kind {
    PF_OP_END = 1,     /* arg = loop index read at the barrier call (bias in the metadata)  */
    PF_OP_BEGIN = 2,   /* arg = low 24 bits of (tensor address >> 4)                        */
    PF_OP_BARRIER = 3, /* arg = 0: ggml_barrier entered, inside an operator or after it     */
    PF_OP_ENTER = 4,   /* arg = 0: the thread entered the graph loop                        */
    PF_OP_LEAVE = 5,   /* arg = 0: the thread reached the barrier after the loop            */
};

/* A batch holds its records in one of two forms. Wide: n times pf_op. */
struct pf_op {
    unsigned int dt;             /* nanoseconds since the batch's h.ts */
    unsigned int what;           /* pf_op_kind << 24 | arg */
};

/* Compact: n times 32 bits. The first record is at h.ts and holds what a pf_op's `what` would: an
 * END, ENTER or LEAVE. Any further one is code << PF_OPS_DT_BITS | ns since h.ts; its code says by
 * how much the loop index has grown since the record before (from -1 after an ENTER), or LEAVE,
 * which is the batch's last. What does not fit begins a new batch, so that each can be read
 * alone. */
#define PF_OPS_DT_BITS 27
#define PF_OPS_MAX_STEP 30       /* codes 1 .. 30: END; 0 is no code */
#define PF_OPS_CODE_LEAVE 31

#define PF_OPS_LAST 1            /* flags: this batch ends the thread's visit of a graph */
#define PF_OPS_COMPACT 2         /* flags: the compact form */

struct pf_ops {
    struct pf_hdr h;             /* ts: base of the batch */
    unsigned long long cgraph;   /* 0: not known at the probe site */
    unsigned int seq;            /* per thread, +1 a batch, so that a lost one is seen */
    unsigned int n;              /* records that follow */
    struct pf_op op[];           /* or, compact, unsigned int [] */
};

/* Comes before the batch with the same tid and seq. Values are the thread's own since some moment:
 * only differences mean something. */
#define PF_NOT_COUNTED 0xffffffffffffffff /* value: the kernel did not let it be read there */

struct pf_counts {
    struct pf_hdr h;             /* ts: of the batch */
    unsigned int seq;            /* of the batch */
    unsigned int n;              /* records of the batch */
    unsigned int n_counters;     /* values a record */
    unsigned int pad;
    unsigned long long enabled[PF_MAX_COUNTERS]; /* ns that the thread ran, at the last record */
    unsigned long long running[PF_MAX_COUNTERS]; /* and of these, ns that it was counted */
    unsigned long long value[];  /* n x n_counters */
};

#define PF_PTRS_LEAFS 1          /* flags: leafs[], else nodes[] */

/* Pieces and tensors are sent when they are new or changed; a piece's `first` is its place
 * in the array of that cgraph. */

struct pf_ptrs {
    struct pf_hdr h;
    unsigned long long cgraph;
    unsigned long long gen;
    unsigned int first;          /* index of ptr[0] */
    unsigned int n;              /* valid entries */
    unsigned long long ptr[PF_PTRS_PER_RECORD];
};

struct pf_tensor {
    struct pf_hdr h;
    unsigned long long addr;
    unsigned long long gen;
    unsigned char raw[PF_TENSOR_SIZE];
};

struct pf_buffer {
    struct pf_hdr h;
    unsigned long long addr;
    unsigned long long gen;
    unsigned char raw[PF_BUFFER_SIZE];
};

struct pf_thread {
    struct pf_hdr h;
    char comm[PF_COMM_LEN];
};

#define PF_SCHED_OUT 1           /* flags: the thread left its CPU                        */
#define PF_SCHED_IN 2            /* flags: the thread got a CPU                           */
#define PF_SCHED_WAKE 4          /* flags: the thread may run again, and waits for a CPU  */
#define PF_SCHED_NEW 8           /* flags: with WAKE, the thread was just made            */
#define PF_SCHED_PREEMPT 16      /* flags: with OUT, inside the kernel and against its will */
#define PF_SCHED_KERNEL 32       /* flags: other is a thread of the kernel                */

struct pf_sched {
    struct pf_hdr h;             /* tid: the thread of the target */
    unsigned int cpu;            /* where the event happened; of WAKE the waker's */
    unsigned int state;          /* OUT: the kernel's raw task state, 0 is runnable */
    unsigned int other;          /* OUT: tid of who came next, 0 idle; WAKE: who woke it; IN: itself */
    unsigned int other_tgid;     /* process of other */
    int prio;                    /* kernel priority of other: 100 + nice + 20, below 100 real time */
    unsigned int pad;
    char comm[PF_COMM_LEN];      /* name of other */
};

#define PF_FAULT_MAJOR 1         /* flags: the page had to be read, or the fault had to wait */

/* One major fault, or minor faults of a thread that follow each other in time and address. */
struct pf_fault {
    struct pf_hdr h;             /* ts: the first fault began */
    unsigned long long addr;     /* of the first fault */
    unsigned long long last;     /* of the last one */
    unsigned int n;              /* faults */
    unsigned int dt;             /* ns from ts to the end of the last one */
    unsigned long long ns;       /* time inside the faults */
};

#define PF_READ_WRITE 1          /* flags: written, not read */

struct pf_read {
    struct pf_hdr h;             /* ts: handed to the block layer, on the thread that asked */
    unsigned long long ino;      /* inode of the file whose page cache it fills, 0: of none */
    unsigned long long offset;   /* in the file, bytes */
    unsigned int dev;            /* device of the file system, major << 20 | minor */
    unsigned int bytes;
};

enum pf_copy_what {
    PF_COPY_SET = 1,             /* host memory to a tensor */
    PF_COPY_GET = 2,             /* a tensor to host memory */
    PF_COPY_TENSOR = 3,          /* a tensor to another */
    PF_COPY_FILL = 4,            /* one byte to a tensor */
};

#define PF_COPY_ASYNC 1          /* flags: it need not have happened when the function returns */
#define PF_COPY_WHOLE 0xffffffffffffffff /* bytes: all of the tensor */

struct pf_copy {
    struct pf_hdr h;
    unsigned long long backend;  /* ggml_backend_t that was given, 0: none was */
    unsigned long long src;      /* tensor, or host memory */
    unsigned long long dst;
    unsigned long long bytes;
    unsigned long long src_owner; /* a function of the tensor's buffer, names its backend; 0: host memory */
    unsigned long long dst_owner;
    unsigned int what;           /* enum pf_copy_what */
    unsigned int probe;
    unsigned char raw[PF_TENSOR_SIZE]; /* the tensor written to, or, GET and TENSOR, read from */
};

#define PF_SYNC_EVENT 1          /* flags: of an event: `backend` is its device */

struct pf_sync {
    struct pf_hdr h;
    unsigned long long backend;  /* ggml_backend_t */
    unsigned long long get_name; /* as in pf_split */
    unsigned char guid[16];
    unsigned int probe;
    unsigned int pad;
};

struct pf_work {
    struct pf_hdr h;
    unsigned long long value[4]; /* arguments; which ones, the probe's role says */
    unsigned int probe;
    unsigned int pad;
};

/* The ids that a MUL_MAT_ID takes as its third source, of consecutive tokens; nodes after it that
 * take the same ids (gate, up, down) have no record of their own. */
struct pf_experts {
    struct pf_hdr h;             /* ts: reading began; tid: of the graph's GRAPH_BEGIN */
    unsigned long long cgraph;
    unsigned int node;           /* index of the first such node in the graph */
    unsigned int n_used;         /* experts a token, at most PF_MAX_EXPERTS_USED */
    unsigned int n_tokens;       /* rows of the whole tensor */
    unsigned int first;          /* row of the first id here */
    unsigned int n;              /* rows here */
    unsigned int ns;             /* profinfer's own time reading them */
    int id[];                    /* n x n_used, as they lie in the tensor: the likeliest first */
};

/* Slots of the per-CPU counter array: PF_CNT_SENT + kind, PF_CNT_LOST + kind. */
enum pf_counter {
    PF_CNT_SENT = 0,
    PF_CNT_LOST = 32,
    PF_CNT_OP_RECORDS = 64,      /* operator records put in a batch                       */
    PF_CNT_OP_LOST = 65,         /* operator records in batches the ring refused          */
    PF_CNT_NO_SLOT = 66,         /* operator records of threads beyond the table of slots */
    PF_CNT_UNREADABLE = 67,      /* tensors or graphs whose memory could not be read      */
    PF_CNT_TOO_MANY_NODES = 68,  /* graphs longer than a walk can be                      */
    PF_CNT_CALL_NS = 69,         /* time in outermost calls that ended, and waits after, ns */
    PF_CNT_STEPS = 70,           /* decode steps of calls that only decoded, and ended    */
    PF_CNT_STEP_NS = 71,         /* time in those calls, ns                               */
    PF_CNT_THREADS = 72,         /* threads asked for, summed over the graphs begun       */
    PF_CNT_NOT_COUNTED = 73,     /* readings of hardware or software counters that failed */
    PF_CNT_NODES = 74,           /* nodes, summed over the graphs begun                   */
    PF_CNT_NODE_THREADS = 75,    /* nodes times threads, likewise                         */
    PF_CNT_STEP_NODES = 76,      /* of PF_CNT_NODES those in the calls of PF_CNT_STEPS    */
    PF_CNT_SCHED_NS = 77,        /* spent on PF_SCHED records, told from those timed, ns  */
    PF_CNT_EXPERTS_UNREAD = 78,  /* rows of expert ids that could not be read             */
    PF_CNT_OP_PASSED = 79,       /* hits of the operators' probes that left no record because of
                                  * record --ops, --layers, --threads, --tokens, --every  */
    PF_CNT_COUNT = 80,
};

#endif
