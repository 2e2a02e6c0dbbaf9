/* struct pt_regs: a uprobe's context, the argument of every BPF program here. The order of
 * the registers is fixed by the kernel's ABI with user space. */
#ifndef PROFINFER_LINUX_PTRACE_H
#define PROFINFER_LINUX_PTRACE_H
#include <linux/types.h>

#if defined(__x86_64__)
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx;
    unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
    unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__aarch64__)
/* BCC's PT_REGS_* macros see the context as this on arm64. */
struct user_pt_regs {
    __u64 regs[31], sp, pc, pstate;
};
struct pt_regs {
    union {
        struct user_pt_regs user_regs;
        struct {
            u64 regs[31], sp, pc, pstate;
        };
    };
};
#else
#error "profinfer's header tree knows x86-64 and arm64 only; install this kernel's headers"
#endif

#endif
