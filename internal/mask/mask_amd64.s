//go:build !purego

#include "textflag.h"

// func maskAVX2(b []byte, key uint32)
//
// 32 bytes at a time. The last block ends with b and overlaps the one before: it
// is loaded and masked first, with the key turned to where it starts, and stored
// last. Y0 is the key, Y1 that block; SI is b, BX the offset, DX that of the last block.
TEXT ·maskAVX2(SB), NOSPLIT, $0-28
	MOVQ         b_base+0(FP), SI
	MOVQ         b_len+8(FP), DX
	MOVL         key+24(FP), AX
	VMOVD        AX, X0
	VPBROADCASTD X0, Y0

	SUBQ         $32, DX
	MOVQ         DX, CX
	SHLQ         $3, CX       // RORL takes it modulo 32: 8 bits for each of offset % 4
	RORL         CX, AX
	VMOVD        AX, X1
	VPBROADCASTD X1, Y1
	VPXOR        (SI)(DX*1), Y1, Y1

	XORQ BX, BX
	LEAQ -96(DX), R8 // up to here there are four blocks

four:
	CMPQ    BX, R8
	JGT     one
	VPXOR   (SI)(BX*1), Y0, Y2
	VPXOR   32(SI)(BX*1), Y0, Y3
	VPXOR   64(SI)(BX*1), Y0, Y4
	VPXOR   96(SI)(BX*1), Y0, Y5
	VMOVDQU Y2, (SI)(BX*1)
	VMOVDQU Y3, 32(SI)(BX*1)
	VMOVDQU Y4, 64(SI)(BX*1)
	VMOVDQU Y5, 96(SI)(BX*1)
	ADDQ    $128, BX
	JMP     four

one:
	CMPQ    BX, DX
	JGE     last
	VPXOR   (SI)(BX*1), Y0, Y2
	VMOVDQU Y2, (SI)(BX*1)
	ADDQ    $32, BX
	JMP     one

last:
	VMOVDQU Y1, (SI)(DX*1)
	VZEROUPPER
	RET
