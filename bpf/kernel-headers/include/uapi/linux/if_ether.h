/* Included by bcc/proto.h for packet filters; uprobes need nothing of it. */
