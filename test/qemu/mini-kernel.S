# The mini kernel of the embedded machine (guest/) as a Multiboot image for a PC. Position-independent but for LOAD, where
# the boot loader puts it; KERNEL_LOAD and KERNEL_ENTRY (guest/kernel.json) are given on the command line.
#
# The kernel knows no device but an x2APIC, whose registers are MSRs that QEMU's TCG ignores where it has none. What
# wakes it to look into its mailbox is the PC's own timer, through the PC's own interrupt controller.
.code32
.set LOAD, 0x2000000
.set MAGIC, 0x1badb002
.set ADDRESSES, 0x10000         # the header says where to load
.set TIMER_VECTOR, 0x40         # of guest/layout.inc
.set PERIOD, 1193               # of 1193182 Hz: a millisecond

image:
.balign 4
header:
  .long MAGIC, ADDRESSES, -(MAGIC + ADDRESSES)
  .long LOAD + (header - image)
  .long LOAD, LOAD + (image_end - image), LOAD + (image_end - image)
  .long LOAD + (entry - image)

.macro output port, value
  mov $\value, %al
  out %al, $\port
.endm

entry:
  cld
  mov $LOAD + (kernel - image), %esi
  mov $KERNEL_LOAD, %edi
  mov $image_end - kernel, %ecx
  rep movsb

  # First interrupt controller: from TIMER_VECTOR on, ends interrupts by itself, only the timer. The second: nothing.
  output 0x20, 0x11
  output 0x21, TIMER_VECTOR
  output 0x21, 0x04
  output 0x21, 0x03
  output 0x21, 0xfe
  output 0xa1, 0xff
  output 0x43, 0x34
  output 0x40, (PERIOD & 0xff)
  output 0x40, (PERIOD >> 8)

  # An APIC that can be an x2APIC becomes one: the kernel's MSRs would raise #GP.
  mov $1, %eax
  cpuid
  bt $21, %ecx
  jnc 1f
  mov $0x1b, %ecx
  rdmsr
  or $0xc00, %eax
  wrmsr
1:
  mov $1, %ebx                  # boot argument: no programs, only the menu
  mov $KERNEL_ENTRY, %eax
  jmp *%eax

.balign 16
kernel:
.incbin "kernel.bin"
image_end:
