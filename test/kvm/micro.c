/*
 * A device manager that asks for nothing but its own exits: micro SOCKET IMAGE VCPUS [filter]
 *
 * Connects to SOCKET and writes its pid. Commands of one byte come from there, each answered with the same byte:
 * h takes every vCPU out of the guest, r lets them run again, a adds a vCPU, x replaces the program (execve). It ends
 * when the connection does, and with status 1 at an exit that is not its own: it has armed nothing. With `filter`,
 * threads of vCPUs may make no system calls but those that running a guest takes.
 */
#define _GNU_SOURCE
#include "vmm.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define MEMORY (1 << 20)
#define CODE 0x10000
#define HANDLER 0x10000040
#define MAX_VCPUS 8

static struct vcpu {
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	int parked;
} vcpus[MAX_VCPUS];
static int kvm, vm, count, filtered, held, run_size;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void nothing(int signal)
{
	(void)signal;
}

static void filter_thread(void)
{
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_futex),
		ALLOW(SYS_rt_sigreturn),
		ALLOW(SYS_exit),
		ALLOW(SYS_exit_group),
		ALLOW(SYS_write),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		ALLOW(KVM_RUN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };
	checked("PR_SET_NO_NEW_PRIVS", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	checked("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static void park(struct vcpu *vcpu)
{
	pthread_mutex_lock(&mutex);
	while (held) {
		vcpu->parked = 1;
		pthread_cond_broadcast(&changed);
		pthread_cond_wait(&changed, &mutex);
	}
	vcpu->parked = 0;
	vcpu->run->immediate_exit = 0;
	pthread_mutex_unlock(&mutex);
}

static void *run(void *argument)
{
	struct vcpu *vcpu = argument;
	if (filtered)
		filter_thread();
	park(vcpu);
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR) {
				/* What an exit has left to be done is done: here the vCPU may stand still. */
				park(vcpu);
				continue;
			}
			fprintf(stderr, "KVM_RUN: %s\n", strerror(errno));
			_exit(1);
		}
		if (vcpu->run->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "exit %u\n", vcpu->run->exit_reason);
			_exit(1);
		}
	}
	return NULL;
}

static struct kvm_cpuid2 *supported_cpuid(void)
{
	static struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid;
	cpuid.header.nent = 256;
	checked("KVM_GET_SUPPORTED_CPUID", ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid));
	return &cpuid.header;
}

static void add_vcpu(void)
{
	struct vcpu *vcpu = &vcpus[count];
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = count == 0 ? 0 : 0x10, .rflags = 2, .rsp = 0x8000 };
	vcpu->fd = checked("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, count));
	vcpu->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	checked("KVM_SET_CPUID2", ioctl(vcpu->fd, KVM_SET_CPUID2, supported_cpuid()));
	ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	sregs.cs.selector = CODE >> 4;
	sregs.cs.base = CODE;
	sregs.ds.selector = 0x2000;
	sregs.ds.base = 0x20000;
	sregs.es.selector = 0x3000;
	sregs.es.base = 0x30000;
	sregs.ss.selector = 0x4000;
	sregs.ss.base = 0x40000;
	checked("KVM_SET_SREGS", ioctl(vcpu->fd, KVM_SET_SREGS, &sregs));
	checked("KVM_SET_REGS", ioctl(vcpu->fd, KVM_SET_REGS, &regs));
	count++;
	pthread_create(&vcpu->thread, NULL, run, vcpu);
}

static void set_held(int hold)
{
	pthread_mutex_lock(&mutex);
	held = hold;
	pthread_cond_broadcast(&changed);
	for (int i = 0; i < count && hold; i++) {
		vcpus[i].run->immediate_exit = 1;
		pthread_kill(vcpus[i].thread, SIGUSR1);
	}
	for (int i = 0; i < count && hold; i++)
		while (!vcpus[i].parked)
			pthread_cond_wait(&changed, &mutex);
	pthread_mutex_unlock(&mutex);
}

static void load(const char *image)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
	uint8_t *ram = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int file = checked(image, open(image, O_RDONLY));
	checked("image", read(file, ram + CODE, 0x10000));
	close(file);
	for (int i = 0; i < 256; i++)
		((uint32_t *)ram)[i] = HANDLER;
	region.userspace_addr = (uintptr_t)ram;
	checked("memory", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct sigaction action = { .sa_handler = nothing };
	int control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char command;
	if (argc < 4)
		return 2;
	sigaction(SIGUSR1, &action, NULL);
	filtered = argc > 4 && strcmp(argv[4], "filter") == 0;
	vm = new_vm();
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	load(argv[2]);
	for (int i = 0; i < atoi(argv[3]); i++)
		add_vcpu();
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
	checked("connect", connect(control, (struct sockaddr *)&address, sizeof(address)));
	dprintf(control, "%d\n", getpid());
	while (read(control, &command, 1) == 1) {
		if (command == 'h' || command == 'r')
			set_held(command == 'h');
		else if (command == 'a')
			add_vcpu();
		else if (command == 'x')
			execl("/bin/sleep", "sleep", "30", NULL);
		checked("answer", write(control, &command, 1));
	}
	return 0;
}
