/* Some BCC releases ask for it beside kconfig.h; the same macros do. */
#include <linux/compiler.h>
