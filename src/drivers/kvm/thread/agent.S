# What runs inside the VMM while a vCPU is interposed on. Position independent; uses no stack. rbx is the slot.
#
# Every way on from a stop is decided by the tracer, which writes `command` before it lets the thread go. When
# `command` is still 0 after a stop nobody traces any more: the agent then disarms guest debugging, restores
# the thread's registers from the slot and lets the VMM go on as if nothing had been there.
.intel_syntax noprefix
.set COMMAND, 0
.set POSTED, 4
.set RESULT, 8
.set EXIT_MASK, 16
.set RUN_PAGE, 24
.set VCPU_FD, 32
.set TID, 36
.set PID, 40
.set COUNT, 44
.set SIGNAL_MASK, 48
.set REGS, 64
.set DEBUG_ON, 288
.set DEBUG_OFF, 360
.set MSRS, 440
.set VM_FD, 440+136
.set SWITCH_FD, 440+140
.set MSR_WRITE, 600
.set GRACE, 624
.set PAGES, 640
.set PAGES_FD, 648
.set WAITING, 652
.set FILTER_ON, 3072
.set FILTER_OFF, 3464
.set CALLS, 1024
# Nobody traces any more. While there are breakpoints in guest memory the guard gets the time to take them out.
.macro await_guard
  cmp qword ptr [rbx+GRACE+8], 0
  je 1f
  lea rdi, [rbx+GRACE]
  xor esi, esi
  mov eax, 35                    # nanosleep
  syscall
1:
.endm
.text
# +0: arm, then enter the guest until there is something to tell. SWITCH_FD is the VM when the MSR filter is to be on
# only inside the agent (there is one vCPU), else negative; VM_FD is negative when there is no filter.
run:
  mov edi, [rbx+SWITCH_FD]
  test edi, edi
  js armed
  lea rdx, [rbx+FILTER_ON]
  mov esi, 0x4188aec6            # KVM_X86_SET_MSR_FILTER
  mov eax, 16
  syscall
armed:
  lea rdx, [rbx+DEBUG_ON]
  mov esi, 0x4048ae9b            # KVM_SET_GUEST_DEBUG
  mov edi, [rbx+VCPU_FD]
  mov eax, 16
  syscall
again:
  mov dword ptr [rbx+WAITING], 0
  xor edx, edx
  mov esi, 0xae80                # KVM_RUN
  mov edi, [rbx+VCPU_FD]
  mov eax, 16
  syscall
ran:
  mov [rbx+RESULT], rax
  test rax, rax
  jnz leave
  mov dword ptr [rbx+WAITING], 1
  mov rcx, [rbx+RUN_PAGE]
  mov ecx, [rcx+8]
  cmp ecx, 63
  ja leave
  mov rax, [rbx+EXIT_MASK]
  bt rax, rcx
  jnc leave
  lea rdx, [rbx+MSRS]
  mov esi, 0xc008ae88            # KVM_GET_MSRS
  mov edi, [rbx+VCPU_FD]
  mov eax, 16
  syscall
event:
  mov dword ptr [rbx+COMMAND], 0
  inc dword ptr [rbx+POSTED]
  mov edi, [rbx+PID]
  mov esi, [rbx+TID]
  mov edx, 23                    # SIGURG
  mov eax, 234                   # tgkill
  syscall
  mov eax, [rbx+COMMAND]
  cmp eax, 1
  je again
  cmp eax, 2
  je run
  jmp abandoned
# The exit is the VMM's. Guest debugging is off outside the agent.
leave:
  mov edi, [rbx+SWITCH_FD]
  test edi, edi
  js filtered
  lea rdx, [rbx+FILTER_OFF]
  mov esi, 0x4188aec6
  mov eax, 16
  syscall
filtered:
  lea rdx, [rbx+DEBUG_OFF]
  mov esi, 0x4048ae9b
  mov edi, [rbx+VCPU_FD]
  mov eax, 16
  syscall
  mov dword ptr [rbx+COMMAND], 0
  inc dword ptr [rbx+POSTED]
  mov edi, [rbx+PID]
  mov esi, [rbx+TID]
  mov edx, 23
  mov eax, 234
  syscall
  mov eax, [rbx+COMMAND]
  cmp eax, 1
  je again
  cmp eax, 2
  je run
  mov r14d, 1
  jmp left_alone
to_vmm:
  mov rax, [rbx+RESULT]          # the system call of the VMM has this result
  mov [rbx+REGS+80], rax
  add qword ptr [rbx+REGS+128], 2
  jmp restore
# Carries out COUNT system calls of the table.
call:
  lea r12, [rbx+CALLS]
  mov r13d, [rbx+COUNT]
next:
  mov rax, [r12]
  mov rdi, [r12+8]
  mov rsi, [r12+16]
  mov rdx, [r12+24]
  mov r10, [r12+32]
  mov r8, [r12+40]
  mov r9, [r12+48]
  syscall
  mov [r12+56], rax
  add r12, 64
  dec r13d
  jnz next
  jmp event
abandoned:
  xor r14d, r14d
# Nobody traces any more. r14d: the exit is the VMM's, unless it is an access to one of the pages.
left_alone:
  await_guard
  mov r12, [rbx+PAGES]
  test r12, r12
  jz pages_back
  mov r13d, [r12]
  test r13d, r13d
  jz pages_back
  jmp more_pages
page_back:
  add r12, 32
  mov rdx, r12
  mov esi, 0x4020ae46            # KVM_SET_USER_MEMORY_REGION
  mov edi, [rbx+PAGES_FD]
  mov eax, 16
  syscall
more_pages:
  dec r13d
  jns page_back
# What waits is carried out, so that the next KVM_RUN goes on as if the page had never been away.
  cmp dword ptr [rbx+WAITING], 0
  je pages_back
  mov rcx, [rbx+RUN_PAGE]
  mov eax, [rcx+8]
  cmp eax, 17                    # KVM_EXIT_INTERNAL_ERROR: the fetch is made again
  je run_again
  cmp eax, 6                     # KVM_EXIT_MMIO
  jne pages_back
  mov r12, [rbx+PAGES]
  mov r13d, [r12]
  jmp next_page
is_it:
  add r12, 32
  mov rax, [rcx+32]
  sub rax, [r12+8]
  cmp rax, 4096
  jb access
next_page:
  dec r13d
  jns is_it
  jmp pages_back
access:
  add rax, [r12+24]
  lea rdx, [rcx+40]
  cmp byte ptr [rcx+52], 0
  je length
  test dword ptr [r12+4], 2      # KVM_MEM_READONLY: writes are the VMM's
  jnz pages_back
  xchg rax, rdx
length:
  mov ecx, [rcx+48]
  cmp ecx, 8
  ja pages_back
  mov rsi, rax
  mov rdi, rdx
  cld
  rep movsb
run_again:
  xor r14d, r14d
pages_back:
  test r14d, r14d
  jnz to_vmm
  cmp dword ptr [rbx+VCPU_FD], 0
  js restore
  mov rcx, [rbx+RUN_PAGE]
  cmp dword ptr [rcx+8], 30      # KVM_EXIT_X86_WRMSR: user space has to carry it out
  jne disarm
  mov eax, [rcx+44]
  mov [rbx+MSR_WRITE+8], eax
  mov rax, [rcx+48]
  mov [rbx+MSR_WRITE+16], rax
  mov dword ptr [rbx+MSR_WRITE], 1
  lea rdx, [rbx+MSR_WRITE]
  mov esi, 0x4008ae89            # KVM_SET_MSRS
  mov edi, [rbx+VCPU_FD]
  mov eax, 16
  syscall
disarm:
  mov edi, [rbx+VM_FD]
  test edi, edi
  js unfiltered
  lea rdx, [rbx+FILTER_OFF]
  mov esi, 0x4188aec6
  mov eax, 16
  syscall
unfiltered:
  lea rdx, [rbx+DEBUG_OFF]
  mov esi, 0x4048ae9b
  mov edi, [rbx+VCPU_FD]
  mov eax, 16
  syscall
restore:
  mov edi, 2                     # SIG_SETMASK
  lea rsi, [rbx+SIGNAL_MASK]
  xor edx, edx
  mov r10d, 8
  mov eax, 14                    # rt_sigprocmask
  syscall
  mov r15, [rbx+REGS]
  mov r14, [rbx+REGS+8]
  mov r13, [rbx+REGS+16]
  mov r12, [rbx+REGS+24]
  mov rbp, [rbx+REGS+32]
  mov r11, [rbx+REGS+48]
  mov r10, [rbx+REGS+56]
  mov r9, [rbx+REGS+64]
  mov r8, [rbx+REGS+72]
  mov rax, [rbx+REGS+80]
  mov rcx, [rbx+REGS+88]
  mov rdx, [rbx+REGS+96]
  mov rsi, [rbx+REGS+104]
  mov rdi, [rbx+REGS+112]
  lea rsp, [rbx+REGS+128]        # rip, cs, rflags, rsp, ss
  mov rbx, [rbx+REGS+40]
  iretq
