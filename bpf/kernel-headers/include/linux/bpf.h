/* BCC carries its own copy of the kernel's BPF interface; one truth is enough. */
#include <bcc/bpf.h>
