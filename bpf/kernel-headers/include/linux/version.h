/* Needed by bcc/helpers.h, which stamps LINUX_VERSION_CODE into every program. Kernels since
 * 5.0 do not check it, and profinfer needs a ring buffer (5.8) anyway. */
#ifndef PROFINFER_LINUX_VERSION_H
#define PROFINFER_LINUX_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
#endif
