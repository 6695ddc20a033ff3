/*
 * The least that traces a vCPU instruction by instruction: a child runs the guest, reads eight MSRs after each step and
 * stops; its parent reads the registers and lets it go on. tracer ROUNDS STEPS: prints nanoseconds of a step.
 * With a third argument each step is also told to another process, which answers.
 */
#define _GNU_SOURCE
#include "../../test/kvm/vmm.h"
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>

#define EVENT_SIZE 568
#define REPLY_SIZE 32

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void step_for_ever(int vcpu)
{
	static const uint32_t indices[] = { 0x174, 0x175, 0x176, 0xc0000081, 0xc0000082, 0xc0000083, 0x277, 0xc0000102 };
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entries[8];
	} msrs = { .header.nmsrs = 8 };
	for (int i = 0; i < 8; i++)
		msrs.entries[i].index = indices[i];
	for (;;) {
		ioctl(vcpu, KVM_RUN, 0);
		ioctl(vcpu, KVM_GET_MSRS, &msrs);
		syscall(SYS_tgkill, getpid(), getpid(), SIGURG);
	}
}

int main(int argc, char **argv)
{
	static const uint8_t code[] = { 0x90, 0x90, 0xeb, 0xfc };
	struct kvm_userspace_memory_region region = { .memory_size = 1 << 20 };
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	struct kvm_run *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char event[EVENT_SIZE] = { 0 }, reply[REPLY_SIZE] = { 0 };
	int status, rounds = atoi(argv[1]), steps = atoi(argv[2]), sockets[2];
	pid_t tool = 0, child = fork();
	if (child == 0) {
		uint8_t *ram = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		int vm = new_vm();
		region.userspace_addr = (uintptr_t)ram;
		memcpy(ram + 0x1000, code, sizeof(code));
		ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
		int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
		struct kvm_run *run = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
		ioctl(vcpu, KVM_GET_SREGS, &sregs);
		sregs.cs.base = sregs.cs.selector = 0;
		ioctl(vcpu, KVM_SET_SREGS, &sregs);
		ioctl(vcpu, KVM_SET_REGS, &regs);
		ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug);
		run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
		raise(SIGSTOP);
		step_for_ever(vcpu);
	}
	waitpid(child, &status, WUNTRACED);
	socket_pair(sockets);
	if (argc > 3 && (tool = fork()) == 0)
		for (;;) {
			ssize_t size = 0, got;
			while (size < EVENT_SIZE && (got = read(sockets[1], event, EVENT_SIZE - size)) > 0)
				size += got;
			if (write(sockets[1], reply, REPLY_SIZE) != REPLY_SIZE)
				_exit(0);
		}
	checked("PTRACE_SEIZE", ptrace(PTRACE_SEIZE, child, 0, 0));
	kill(child, SIGCONT);
	for (int round = 0; round < rounds; round++) {
		double start = now();
		for (int i = 0; i < steps; i++) {
			do {
				waitpid(child, &status, __WALL);
				if (WSTOPSIG(status) != SIGURG)
					ptrace(PTRACE_CONT, child, 0, 0);
			} while (WSTOPSIG(status) != SIGURG);
			memcpy(event, page, 456);
			if (tool && (write(sockets[0], event, EVENT_SIZE) < 0 || read(sockets[0], reply, REPLY_SIZE) < 0))
				return 1;
			ptrace(PTRACE_CONT, child, 0, 0);
		}
		printf("%.0f\n", (now() - start) / steps);
	}
	kill(child, SIGKILL);
	if (tool)
		kill(tool, SIGKILL);
	return 0;
}
