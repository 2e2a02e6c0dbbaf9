/* Included by bcc/helpers.h, which then uses nothing of it (bpf_log2l is BCC's own). */
