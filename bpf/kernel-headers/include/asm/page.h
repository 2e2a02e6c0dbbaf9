/* Needed by bcc/helpers.h: BPF_RINGBUF_OUTPUT(name, pages) sizes its map in PAGE_SIZE units.
 * arm64 kernels may use larger pages: pass -DPF_PAGE_SIZE=<getconf PAGE_SIZE> there. */
#ifndef PROFINFER_ASM_PAGE_H
#define PROFINFER_ASM_PAGE_H
#ifndef PF_PAGE_SIZE
#define PF_PAGE_SIZE 4096
#endif
#define PAGE_SIZE PF_PAGE_SIZE
#endif
