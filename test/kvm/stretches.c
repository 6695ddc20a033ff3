/*
 * A device manager that runs its vCPU when it is told to: stretches SOCKET. The guest counts in memory at 0x2010 and writes
 * to a port in each round. A line of standard input is a command:
 *   on       the thread of the vCPU runs the guest, until `off`
 *   off      it waits outside KVM_RUN
 *   stretch  a new thread runs the guest for two exits, and ends
 *   here     the main thread runs the guest for two exits
 *   count    prints the counter
 *   exit     the process ends at once with code 7, whatever its threads do
 *   close    closes the descriptor of the VM, and lives on
 *   thread   the thread of the vCPU ends
 */
#include "vmm.h"
#include <pthread.h>
#include <semaphore.h>

#define RAM (1ull << 20)

static int vm, vcpu;
static uint8_t *ram;
static volatile int going;
static volatile int ending;
static sem_t more, outside;

static void one_exit(void)
{
	while (ioctl(vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR && errno != EAGAIN)
			checked("KVM_RUN", -1);
}

static void *run_vcpu(void *unused)
{
	for (;;) {
		sem_wait(&more);
		while (going)
			one_exit();
		sem_post(&outside);
		if (ending)
			return unused;
	}
}

static void *run_stretch(void *unused)
{
	one_exit();
	one_exit();
	return unused;
}

static void make_vcpu(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = RAM };
	ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	region.userspace_addr = (uintptr_t)ram;
	checked("the memory slot", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
	vcpu = counting_vcpu(vm, ram);
}

static void off(void)
{
	if (!going)
		return;
	going = 0;
	sem_wait(&outside);
}

static void obey(const char *command, pthread_t *thread)
{
	if (strcmp(command, "exit") == 0)
		_exit(7);
	if (strcmp(command, "on") == 0) {
		going = 1;
		sem_post(&more);
	} else if (strcmp(command, "off") == 0) {
		off();
	} else if (strcmp(command, "thread") == 0) {
		off();
		ending = 1;
		sem_post(&more);
		pthread_join(*thread, NULL);
	} else if (strcmp(command, "stretch") == 0) {
		pthread_t other;
		checked("pthread_create", -pthread_create(&other, NULL, run_stretch, NULL));
		pthread_join(other, NULL);
	} else if (strcmp(command, "close") == 0) {
		close(vm);
	} else if (strcmp(command, "here") == 0) {
		run_stretch(NULL);
	} else if (strcmp(command, "count") == 0) {
		printf("count %u\n", *(uint32_t *)(ram + 0x2010));
	}
	printf("done %s\n", command);
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char command[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	use_series("v12");
	vm = new_vm();
	make_vcpu();
	sem_init(&more, 0, 0);
	sem_init(&outside, 0, 0);
	pthread_create(&thread, NULL, run_vcpu, NULL);
	if (argc > 1)
		hook_to(vm, argv[1]);
	printf("ready\n");
	while (scanf("%63s", command) == 1)
		obey(command, &thread);
	printf("UNHOOK: %s\n", strerror(-request(vm, UNHOOK, NULL)));
	return failures != 0;
}
