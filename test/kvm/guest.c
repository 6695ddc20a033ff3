/*
 * A device manager whose guest counts in memory at 0x2010 and writes to a port in each round: guest [SOCKET].
 *
 * It makes memory slots in every way, right and wrong, and prints those that there are in the end, one a line:
 * slot, guest-physical address, size, address in this process, whether it is read-only. The first word of each page of
 * a slot is the guest-physical address that it ended at, plus 1. Then it hooks its VM to SOCKET, if there is one, runs
 * until standard input ends, makes another slot, and prints whether its standard descriptors are non-blocking and what
 * UNHOOK returns.
 */
#include "vmm.h"
#include <pthread.h>

#define MIB (1ull << 20)
#define LOG_DIRTY KVM_MEM_LOG_DIRTY_PAGES
#define READONLY KVM_MEM_READONLY

static int vm, vcpu;

static void *backing(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return memory == MAP_FAILED ? NULL : memory;
}

static int set_slot(uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t size, void *memory)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};
	return request(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

/* Marks the pages of a slot, and tells of it. */
static void is_at(int slot, uint64_t gpa, uint64_t size, uint8_t *memory, int readonly)
{
	for (uint64_t offset = 0; offset < size; offset += 4096)
		*(uint64_t *)(memory + offset) = gpa + offset + 1;
	printf("slot %d 0x%llx 0x%llx 0x%llx %d\n", slot, (unsigned long long)gpa, (unsigned long long)size,
	       (unsigned long long)(uintptr_t)memory, readonly);
}

static uint8_t *make_slots(void)
{
	uint8_t *ram = backing(MIB), *rom = backing(MIB), *moved = backing(MIB), *logged = backing(64 << 10);
	expect("RAM", set_slot(0, 0, 0, MIB, ram), 0);
	expect("ROM, the end of a mapping", set_slot(1, READONLY, 0xfffc0000, 64 << 10, rom + MIB - (64 << 10)), 0);
	expect("a slot at 2 MiB", set_slot(2, 0, 2 * MIB, MIB, moved), 0);
	expect("the same again", set_slot(2, 0, 2 * MIB, MIB, moved), 0);
	expect("with other memory", set_slot(2, 0, 2 * MIB, MIB, ram), -EINVAL);
	expect("with another size", set_slot(2, 0, 2 * MIB, 2 * MIB, moved), -EINVAL);
	expect("read-only", set_slot(2, READONLY, 2 * MIB, MIB, moved), -EINVAL);
	expect("moved over another one", set_slot(2, 0, MIB / 2, MIB, moved), -EEXIST);
	expect("moved", set_slot(2, 0, 4 * MIB, MIB, moved), 0);
	expect("a slot at 8 MiB", set_slot(3, 0, 8 * MIB, MIB, ram), 0);
	expect("deleted", set_slot(3, 0, 0, 0, NULL), 0);
	expect("deleted twice", set_slot(3, 0, 0, 0, NULL), -EINVAL);
	expect("over another one", set_slot(4, 0, 4 * MIB + 4096, 4096, ram), -EEXIST);
	expect("not aligned", set_slot(5, 0, 16 * MIB + 1, 4096, ram), -EINVAL);
	expect("half a page", set_slot(5, 0, 16 * MIB, 2048, ram), -EINVAL);
	expect("an unknown flag", set_slot(5, 1 << 20, 16 * MIB, 4096, ram), -EINVAL);
	expect("a slot next to another one", set_slot(6, LOG_DIRTY, 5 * MIB, 64 << 10, logged), 0);
	expect("without a log of dirty pages", set_slot(6, 0, 5 * MIB, 64 << 10, logged), 0);
	is_at(0, 0, MIB, ram, 0);
	is_at(1, 0xfffc0000, 64 << 10, rom + MIB - (64 << 10), 1);
	is_at(2, 4 * MIB, MIB, moved, 0);
	is_at(6, 5 * MIB, 64 << 10, logged, 0);
	return ram;
}

static void *run_vcpu(void *unused)
{
	for (;;)
		if (ioctl(vcpu, KVM_RUN, 0) < 0 && errno != EINTR && errno != EAGAIN)
			checked("KVM_RUN", -1);
	return unused;
}

static void start_vcpu(uint8_t *ram)
{
	pthread_t thread;
	vcpu = counting_vcpu(vm, ram);
	pthread_create(&thread, NULL, run_vcpu, NULL);
}

int main(int argc, char **argv)
{
	use_series("v12");
	vm = new_vm();
	start_vcpu(make_slots());
	if (argc > 1)
		hook_to(vm, argv[1]);
	printf("ready\n");
	fflush(stdout);
	while (getchar() != EOF)
		;
	expect("a slot in the end", set_slot(7, 0, 16 * MIB, 4096, backing(4096)), 0);
	printf("UNHOOK: %s\n", strerror(-request(vm, UNHOOK, NULL)));
	for (int fd = 0; fd < 3; fd++)
		printf("descriptor %d is %s\n", fd, fcntl(fd, F_GETFL) & O_NONBLOCK ? "non-blocking" : "blocking");
	return failures != 0;
}
