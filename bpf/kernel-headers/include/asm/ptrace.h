/* The kernel splits pt_regs by architecture; here both are in one file. */
#include <linux/ptrace.h>
