/* Included by bcc/helpers.h: helper numbers, map types, flags. */
#include <bcc/bpf.h>
