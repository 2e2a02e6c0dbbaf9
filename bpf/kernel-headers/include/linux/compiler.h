/* Included by BPF programs written against real headers; profinfer's do not need it. The
 * macros are the few such programs use. */
#ifndef PROFINFER_LINUX_COMPILER_H
#define PROFINFER_LINUX_COMPILER_H
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#endif
