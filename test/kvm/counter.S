# A 64 KiB BIOS in real mode: counts in memory at 0x10000, writes to a port once in 256 rounds, and writes the MSR
# IA32_SYSENTER_CS in each round while the word at 0x10010 is not zero.
.code16
.org 0
start:
  cli
  xor %ax, %ax
  mov %ax, %ss
  mov $0x8000, %sp
  mov $0x1000, %ax
  mov %ax, %ds
  movl $0, 0
  movl $0x4b564d49, 4
  movl $0, 8
  movl $0, 0x10
count:
  incl 0
  movl 0, %eax
  testl $0xff, %eax
  jnz 1f
  outb %al, $0x80
  incl 8
1:
  cmpl $0, 0x10
  je count
  mov $0x174, %ecx
  movl 0, %eax
  xor %edx, %edx
  wrmsr
  jmp count
.org 0xfff0
  ljmp $0xf000, $0
.org 0xffff
  .byte 0
