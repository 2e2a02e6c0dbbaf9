/* Included by bcc/helpers.h for packet filters; uprobes need nothing of it. */
