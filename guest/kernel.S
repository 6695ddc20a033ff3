# kvmi mini kernel: the guest of the embedded machine, for tests, demonstrations and measurements.
#
# Entered at `start` in flat 32-bit protected mode with the boot argument in ebx. Linked in the top 2 GiB, loaded at
# 1 MiB. Symbols with a dot (task.pid, command.int3) are offsets and numbers for tools: build.mjs collects them.

.intel_syntax noprefix

.include "layout.inc"
.include "boot.inc"
.include "memory.inc"
.include "traps.inc"
.include "tasks.inc"
.include "syscalls.inc"
.include "console.inc"
.include "menu.inc"
.include "programs.inc"
.include "data.inc"
