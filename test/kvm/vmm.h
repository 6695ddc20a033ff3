#pragma GCC diagnostic ignored "-Wunused-function"

/* What the small device managers of these tests have in common. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct introspection_hook {
	int32_t fd;
	uint32_t padding;
	uint8_t uuid[16];
};
struct introspection_feature {
	uint32_t allow;
	int32_t id;
};

/* Exits with this code when the kernel knows nothing of the request. */
#define NOT_SUPPORTED 3
/* Exits with this code when introspection is turned off. */
#define DISABLED 4

static unsigned long HOOK, UNHOOK, COMMAND, EVENT, PREUNHOOK;

static void use_series(const char *series)
{
	int base = strcmp(series, "v9") == 0 ? 0xc3 : 0xc8;
	HOOK = _IOW(KVMIO, base, struct introspection_hook);
	UNHOOK = _IO(KVMIO, base + 1);
	COMMAND = _IOW(KVMIO, base + 2, struct introspection_feature);
	EVENT = _IOW(KVMIO, base + 3, struct introspection_feature);
	PREUNHOOK = _IO(KVMIO, base + 4);
}

/* 0 or a negative errno. */
static int request(int fd, unsigned long number, const void *argument)
{
	return ioctl(fd, number, argument) < 0 ? -errno : 0;
}

static int hook(int vm, int fd, uint32_t padding)
{
	struct introspection_hook argument = { .fd = fd, .padding = padding, .uuid = "kvmi test vm" };
	return request(vm, HOOK, &argument);
}

static int feature(int vm, unsigned long number, uint32_t allow, int32_t id)
{
	struct introspection_feature argument = { .allow = allow, .id = id };
	return request(vm, number, &argument);
}

static int failures;

static void expect(const char *what, int got, int wanted)
{
	if (got == wanted)
		return;
	failures++;
	printf("%s: %d (%s), expected %d\n", what, got, strerror(-got), wanted);
}

static int checked(const char *what, int result)
{
	if (result >= 0)
		return result;
	perror(what);
	exit(1);
}

static int new_vm(void)
{
	int kvm = checked("/dev/kvm", open("/dev/kvm", O_RDWR | O_CLOEXEC));
	return checked("KVM_CREATE_VM", ioctl(kvm, KVM_CREATE_VM, 0));
}

/* A pair of connected sockets: [0] is hooked, [1] is the tool's. */
static void socket_pair(int sockets[2])
{
	checked("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
}

/* Whether the other end hung up within two seconds. */
static int hung_up(int fd)
{
	struct timeval two_seconds = { .tv_sec = 2 };
	char byte;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &two_seconds, sizeof(two_seconds));
	return recv(fd, &byte, 1, 0) == 0;
}

/* A command without data in its reply on the tool's end: its error code, or 1 when there is no reply. */
static int tool_command(int fd, int id, const void *body, int size)
{
	char message[64] = { 0 };
	struct {
		uint16_t id, size;
		uint32_t seq;
		int32_t err;
		uint8_t rest[64];
	} reply;
	struct timeval two_seconds = { .tv_sec = 2 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &two_seconds, sizeof(two_seconds));
	memcpy(message, (uint16_t[]){ id, size, 1, 0 }, 8);
	memcpy(message + 8, body, size);
	if (send(fd, message, 8 + size, 0) != 8 + size)
		return 1;
	return recv(fd, &reply, sizeof(reply), 0) >= 12 && reply.id == id ? reply.err : 1;
}

/* GET_VERSION on the tool's end: the version, or a negative number. */
static int get_version(int fd, int id)
{
	uint16_t message[4] = { (uint16_t)id, 0, 1, 0 };
	struct {
		uint16_t id, size;
		uint32_t seq;
		int32_t err;
		uint32_t padding, version;
		uint8_t rest[64];
	} reply;
	struct timeval two_seconds = { .tv_sec = 2 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &two_seconds, sizeof(two_seconds));
	if (send(fd, message, sizeof(message), 0) != sizeof(message))
		return -1;
	ssize_t size = recv(fd, &reply, sizeof(reply), 0);
	return size >= 20 && reply.err == 0 ? (int)reply.version : -1;
}

/* Hooks a VM to the tool that listens at a path. */
static void hook_to(int vm, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int tool = checked("socket", socket(AF_UNIX, SOCK_STREAM, 0));
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	checked("connect", connect(tool, (struct sockaddr *)&address, sizeof(address)));
	expect("HOOK", hook(vm, tool, 0), 0);
	expect("COMMAND", feature(vm, COMMAND, 1, -1), 0);
	expect("EVENT", feature(vm, EVENT, 1, -1), 0);
	close(tool);
}

/* A vCPU whose guest, in memory that begins at 0, counts at 0x2010 and writes to a port in each round. */
static int counting_vcpu(int vm, uint8_t *ram)
{
	/* incl 0x2010; out %al, $0x10; jmp to the first one */
	static const uint8_t code[] = { 0x66, 0xff, 0x06, 0x10, 0x20, 0xe6, 0x10, 0xeb, 0xf7 };
	struct kvm_regs regs = { .rip = 0x1008, .rflags = 2 };
	struct kvm_sregs sregs;
	int vcpu = checked("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0));
	memcpy(ram + 0x1008, code, sizeof(code));
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
	ioctl(vcpu, KVM_SET_REGS, &regs);
	return vcpu;
}
