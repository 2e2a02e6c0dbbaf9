/* Included by bcc/bpf.h: the classes of BPF instructions, which its other macros build on. */
#ifndef PROFINFER_UAPI_LINUX_BPF_COMMON_H
#define PROFINFER_UAPI_LINUX_BPF_COMMON_H
#define BPF_CLASS(code) ((code) & 0x07)
#define BPF_LD 0x00
#define BPF_LDX 0x01
#define BPF_ST 0x02
#define BPF_STX 0x03
#define BPF_ALU 0x04
#define BPF_JMP 0x05
#endif
