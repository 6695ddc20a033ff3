# Real mode, loaded at 0x10000 (cs 0x1000). The mailbox is at 0x20000 (ds), the test page at 0x30000 (es).
# vCPU 0 carries out the action whose number is in the mailbox; other vCPUs start at `counting` and count.
.code16
.set ACTION, 0
.set DONE, 4
.set RESULT, 8
.set EXCEPTIONS, 12
.set ROUNDS, 16
.set COUNT, 32
# In the test page: a function that does nothing.
.set FUNCTION, 0x800
.set MSR_MISC_FEATURES, 0x140
start:
  movb $0xcb, %es:FUNCTION       # lret
  jmp idle
.org 0x10
counting:
  incl COUNT
  outb %al, $0x80
  jmp counting
.org 0x40
# Every entry of the interrupt vector table points here.
exception:
  incl EXCEPTIONS
  iret
.org 0x80
idle:
  incl ROUNDS
  outb %al, $0x80
  mov ACTION, %ebx
  test %ebx, %ebx
  jz idle
  xor %eax, %eax
  dec %ebx
  jz done
  dec %ebx
  jz breakpoint
  dec %ebx
  jz msr
  dec %ebx
  jz write
  dec %ebx
  jz read
  dec %ebx
  jz execute
done:
  mov %eax, RESULT
  movl $0, ACTION
  incl DONE
  jmp idle
breakpoint:
  int3
  jmp done
msr:
  mov $MSR_MISC_FEATURES, %ecx
  rdmsr
  xor $1, %eax
  wrmsr
  rdmsr
  jmp done
write:
  movb $0x42, %es:0
  xor %eax, %eax
  jmp done
read:
  movb %es:0, %al
  jmp done
execute:
  lcall $0x3000, $FUNCTION
  jmp done
