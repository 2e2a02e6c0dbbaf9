/* What BPF programs include by custom (BCC adds the line itself for some macros). */
#include <linux/ptrace.h>
