//go:build !purego

#include "textflag.h"

// func checkAVX2(p *byte, n int, tables *textTables) bool
//
// Each byte is checked with the three before it, 32 bytes at a time:
// Y0 has the bytes, Y1, Y2 and Y3 the text from one, two and three bytes earlier.
// Y8 collects the faults, and is looked at once, at the end.
// SI is p, CX is n, AX the offset of the block, BX that of the last block, n-32,
// DX where the group of blocks ends: 128 bytes, looked at together for ASCII.
TEXT ·checkAVX2(SB), NOSPLIT, $0-25
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	LEAQ -32(CX), BX
	XORQ AX, AX
	XORQ DX, DX

	MOVQ           tables+16(FP), DI
	VBROADCASTI128 0(DI), Y9   // firstHigh, in both halves
	VBROADCASTI128 16(DI), Y10 // firstLow
	VBROADCASTI128 32(DI), Y11 // secondHigh
	VPBROADCASTB   48(DI), Y12 // lowHalf
	VPBROADCASTB   49(DI), Y13 // third
	VPBROADCASTB   50(DI), Y14 // fourth
	VPBROADCASTB   51(DI), Y15 // expectedTail
	VPXOR          Y8, Y8, Y8

	// Before the first block there are zeros: ASCII.
	VMOVDQU    (SI), Y0
	VPERM2I128 $0x08, Y0, Y0, Y4  // its lower half in the upper one
	VPALIGNR   $15, Y4, Y0, Y1
	VPALIGNR   $14, Y4, Y0, Y2
	VPALIGNR   $13, Y4, Y0, Y3
	JMP        check

group:
	LEAQ      128(AX), DX
	CMPQ      DX, CX
	JGT       block
	// Nothing can be wrong where all bytes and the three before them are ASCII.
	VMOVDQU   -3(SI)(AX*1), Y0
	VPOR      (SI)(AX*1), Y0, Y0
	VMOVDQU   32(SI)(AX*1), Y1
	VPOR      64(SI)(AX*1), Y1, Y1
	VPOR      96(SI)(AX*1), Y0, Y0
	VPOR      Y1, Y0, Y0
	VPMOVMSKB Y0, DI
	TESTL     DI, DI
	JNZ       block
	MOVQ      DX, AX
	JMP       next

block:
	// The last block ends with the text, and may overlap the one before.
	CMPQ    AX, BX
	CMOVQGT BX, AX
	VMOVDQU (SI)(AX*1), Y0
	VMOVDQU -1(SI)(AX*1), Y1
	VMOVDQU -2(SI)(AX*1), Y2
	VMOVDQU -3(SI)(AX*1), Y3

check:
	// What three half bytes do not rule out is wrong with a byte and the one before it.
	VPSRLW  $4, Y1, Y4
	VPAND   Y12, Y4, Y4
	VPSHUFB Y4, Y9, Y4
	VPAND   Y12, Y1, Y5
	VPSHUFB Y5, Y10, Y5
	VPSRLW  $4, Y0, Y6
	VPAND   Y12, Y6, Y6
	VPSHUFB Y6, Y11, Y6
	VPAND   Y5, Y4, Y4
	VPAND   Y6, Y4, Y4

	// A second continuation byte must be there exactly where a character of
	// three or four began two bytes earlier, or one of four three bytes earlier.
	VPSUBUSB Y13, Y2, Y2
	VPSUBUSB Y14, Y3, Y3
	VPOR     Y3, Y2, Y2
	VPAND    Y15, Y2, Y2
	VPXOR    Y4, Y2, Y4
	VPOR     Y4, Y8, Y8

	ADDQ $32, AX
	CMPQ AX, CX
	JGE  done
	CMPQ AX, DX
	JLT  block

next:
	CMPQ AX, CX
	JLT  group

done:
	VPTEST Y8, Y8
	SETEQ  ret+24(FP)
	VZEROUPPER // else the code behind us pays for the upper halves
	RET
