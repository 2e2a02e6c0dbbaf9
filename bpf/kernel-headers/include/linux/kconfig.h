/* Included before everything else by BCC ("-include ./include/linux/kconfig.h"): the place
 * of a kernel's configuration. Only what BCC's own headers ask about is set. */
#ifndef PROFINFER_LINUX_KCONFIG_H
#define PROFINFER_LINUX_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_64BIT 1
#define PROFINFER_KERNEL_HEADERS 1 /* tells a program that it is compiled against this tree */
#endif
