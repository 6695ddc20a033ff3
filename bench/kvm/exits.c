/*
 * A device manager whose guest does nothing but write to a port.
 *
 * exits loop: runs it for ever. exits hooked ROUNDS: alternates between unhooked and hooked, and prints the
 * nanoseconds of an exit in each round, unhooked first. exits requests COUNT: prints the nanoseconds of an
 * introspection request on a hooked VM.
 */
#include "../../test/kvm/vmm.h"
#include <time.h>

static int vm, vcpu;
static struct kvm_run *run;

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void load(const uint8_t *code, size_t size)
{
	struct kvm_userspace_memory_region region = { .memory_size = 1 << 20 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	uint8_t *ram = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int kvm = open("/dev/kvm", O_RDWR);
	vm = new_vm();
	region.userspace_addr = (uintptr_t)ram;
	memcpy(ram + 0x1000, code, size);
	checked("memory", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	vcpu = checked("vCPU", ioctl(vm, KVM_CREATE_VCPU, 0));
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
	ioctl(vcpu, KVM_SET_REGS, &regs);
}

static double per_exit(int count)
{
	double start = now();
	for (int i = 0; i < count; i++)
		if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno != EINTR)
			exit(1);
	return (now() - start) / count;
}

int main(int argc, char **argv)
{
	static const uint8_t port_writes[] = { 0xe6, 0x10, 0xeb, 0xfc };
	static const uint8_t steps[] = { 0x90, 0x90, 0xeb, 0xfc };
	const char *what = argc > 1 ? argv[1] : "loop";
	int count = argc > 2 ? atoi(argv[2]) : 0, sockets[2];
	use_series("v12");
	load(strcmp(what, "loop") == 0 ? steps : port_writes, 4);
	socket_pair(sockets);
	if (strcmp(what, "loop") == 0)
		for (;;)
			per_exit(1000);
	per_exit(20000);
	if (strcmp(what, "hooked") == 0)
		for (int i = 0; i < count; i++) {
			int pair[2];
			double without = per_exit(2000), with;
			socket_pair(pair);
			if (hook(vm, pair[0], 0) != 0)
				return NOT_SUPPORTED;
			with = per_exit(2000);
			request(vm, UNHOOK, NULL);
			printf("%.0f %.0f\n", without, with);
			close(pair[0]);
			close(pair[1]);
		}
	if (strcmp(what, "requests") == 0) {
		hook(vm, sockets[0], 0);
		feature(vm, COMMAND, 1, -1);
		for (int round = 0; round < 10; round++) {
			double start = now();
			for (int i = 0; i < count; i++)
				if (feature(vm, COMMAND, 1, -1) != 0)
					return NOT_SUPPORTED;
			printf("%.0f\n", (now() - start) / count);
		}
	}
	return 0;
}
