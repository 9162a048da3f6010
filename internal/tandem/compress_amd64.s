#include "textflag.h"

// The rounds of both states are those of Intel's "SHA Extensions" (2013), figure 8, with
// one message schedule for both.
//
//	X0        message plus constants, implied by SHA256RNDS2
//	X1, X2    state a as ABEF, CDGH
//	X3 to X6  the last sixteen words of the message schedule
//	X7        scratch
//	X8, X9    state b as ABEF, CDGH
//	X10       byte order of the message
//	X11-X14   both states before the block

// FOUR runs rounds 4*k to 4*k+3 with the message words in M.
#define FOUR(k, M) \
	MOVO        M, X0              \
	PADDD       (16*k)(AX), X0     \
	SHA256RNDS2 X0, X1, X2         \
	SHA256RNDS2 X0, X8, X9         \
	PSHUFD      $0x0e, X0, X0      \
	SHA256RNDS2 X0, X2, X1         \
	SHA256RNDS2 X0, X9, X8

// LOAD reads message words.
#define LOAD(k, M) \
	MOVOU  (16*k)(SI), M \
	PSHUFB X10, M

// NEXT completes the words in N, which follow those in M, which follow those in L.
#define NEXT(L, M, N) \
	MOVO       M, X7     \
	PALIGNR    $4, L, X7 \
	PADDD      X7, N     \
	SHA256MSG2 M, N

// SPLIT brings a state at P into the form of the rounds.
#define SPLIT(P, ABEF, CDGH) \
	MOVOU   (P), ABEF          \
	MOVOU   16(P), CDGH        \
	PSHUFD  $0xb1, ABEF, ABEF  \
	PSHUFD  $0x1b, CDGH, CDGH  \
	MOVO    ABEF, X7           \
	PALIGNR $8, CDGH, ABEF     \
	PBLENDW $0xf0, X7, CDGH

// JOIN is the inverse of SPLIT.
#define JOIN(P, ABEF, CDGH) \
	PSHUFD  $0x1b, ABEF, ABEF  \
	PSHUFD  $0xb1, CDGH, CDGH  \
	MOVO    ABEF, X7           \
	PBLENDW $0xf0, CDGH, ABEF  \
	PALIGNR $8, X7, CDGH       \
	MOVOU   ABEF, (P)          \
	MOVOU   CDGH, 16(P)

// func compress(a, b *state, p []byte)
// Requires: SHA, SSE2, SSE4.1, SSSE3
TEXT ·compress(SB), NOSPLIT, $0-40
	MOVQ a+0(FP), DI
	MOVQ b+8(FP), BX
	MOVQ p_base+16(FP), SI
	MOVQ p_len+24(FP), DX
	SHRQ $6, DX
	JZ   done
	MOVOU flip<>(SB), X10
	LEAQ constants<>(SB), AX
	SPLIT(DI, X1, X2)
	SPLIT(BX, X8, X9)

block:
	MOVO X1, X11
	MOVO X2, X12
	MOVO X8, X13
	MOVO X9, X14

	LOAD(0, X3)
	FOUR(0, X3)
	LOAD(1, X4)
	FOUR(1, X4)
	SHA256MSG1 X4, X3
	LOAD(2, X5)
	FOUR(2, X5)
	SHA256MSG1 X5, X4
	LOAD(3, X6)
	FOUR(3, X6)
	NEXT(X5, X6, X3)
	SHA256MSG1 X6, X5
	FOUR(4, X3)
	NEXT(X6, X3, X4)
	SHA256MSG1 X3, X6
	FOUR(5, X4)
	NEXT(X3, X4, X5)
	SHA256MSG1 X4, X3
	FOUR(6, X5)
	NEXT(X4, X5, X6)
	SHA256MSG1 X5, X4
	FOUR(7, X6)
	NEXT(X5, X6, X3)
	SHA256MSG1 X6, X5
	FOUR(8, X3)
	NEXT(X6, X3, X4)
	SHA256MSG1 X3, X6
	FOUR(9, X4)
	NEXT(X3, X4, X5)
	SHA256MSG1 X4, X3
	FOUR(10, X5)
	NEXT(X4, X5, X6)
	SHA256MSG1 X5, X4
	FOUR(11, X6)
	NEXT(X5, X6, X3)
	SHA256MSG1 X6, X5
	FOUR(12, X3)
	NEXT(X6, X3, X4)
	SHA256MSG1 X3, X6
	FOUR(13, X4)
	NEXT(X3, X4, X5)
	FOUR(14, X5)
	NEXT(X4, X5, X6)
	FOUR(15, X6)

	PADDD X11, X1
	PADDD X12, X2
	PADDD X13, X8
	PADDD X14, X9
	ADDQ  $64, SI
	DECQ  DX
	JNZ   block

	JOIN(DI, X1, X2)
	JOIN(BX, X8, X9)

done:
	RET

// func leaf7() uint32
TEXT ·leaf7(SB), NOSPLIT, $0-4
	MOVL $0, ret+0(FP)
	XORL AX, AX
	XORL CX, CX
	CPUID
	CMPL AX, $7
	JB   none
	MOVL $7, AX
	XORL CX, CX
	CPUID
	MOVL BX, ret+0(FP)

none:
	RET

// Words of a message are big-endian.
DATA flip<>+0(SB)/8, $0x0405060700010203
DATA flip<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL flip<>(SB), RODATA|NOPTR, $16

// The round constants of SHA-256 (FIPS 180-4, section 4.2.2).
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
