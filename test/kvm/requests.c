/* A device manager that makes every introspection request in every way, right and wrong. */
#include "vmm.h"
#include <pthread.h>

static int version_id, info_id, control_events_id;

static void errors_before_hook(int vm)
{
	expect("COMMAND before HOOK", feature(vm, COMMAND, 1, -1), -EFAULT);
	expect("EVENT before HOOK", feature(vm, EVENT, 1, -1), -EFAULT);
	expect("COMMAND with allow 2 before HOOK", feature(vm, COMMAND, 2, -1), -EINVAL);
	expect("COMMAND with id -2 before HOOK", feature(vm, COMMAND, 1, -2), -EINVAL);
	expect("PREUNHOOK before HOOK", request(vm, PREUNHOOK, NULL), -EFAULT);
	expect("UNHOOK before HOOK", request(vm, UNHOOK, NULL), 0);
}

static void hook_errors(int vm)
{
	int sockets[2], file = checked("open", open("/etc/hostname", O_RDONLY));
	socket_pair(sockets);
	expect("HOOK with padding", hook(vm, sockets[0], 1), -EINVAL);
	expect("HOOK with fd -1", hook(vm, -1, 0), -EINVAL);
	expect("HOOK with an fd that is not open", hook(vm, 987, 0), -EINVAL);
	expect("HOOK with a file", hook(vm, file, 0), -EINVAL);
	expect("HOOK with a bad pointer", request(vm, HOOK, (void *)8), -EFAULT);
	expect("COMMAND with a bad pointer", request(vm, COMMAND, (void *)8), -EFAULT);
	close(sockets[0]);
	close(sockets[1]);
	close(file);
}

static void life_of_a_hook(int vm)
{
	int sockets[2], more[2];
	socket_pair(sockets);
	socket_pair(more);
	expect("HOOK", hook(vm, sockets[0], 0), 0);
	expect("second HOOK", hook(vm, more[0], 0), -EEXIST);
	expect("second HOOK with a bad fd", hook(vm, -1, 0), -EEXIST);
	expect("GET_VERSION", get_version(sockets[1], version_id), 1);
	expect("disallow GET_VERSION", feature(vm, COMMAND, 0, version_id), -EPERM);
	expect("COMMAND allow 2", feature(vm, COMMAND, 2, -1), -EINVAL);
	expect("COMMAND allow none", feature(vm, COMMAND, 0, -1), 0);
	expect("COMMAND allow all", feature(vm, COMMAND, 1, -1), 0);
	expect("EVENT allow 2", feature(vm, EVENT, 2, -1), -EINVAL);
	expect("EVENT allow none", feature(vm, EVENT, 0, -1), 0);
	expect("EVENT allow all", feature(vm, EVENT, 1, -1), 0);
	expect("EVENT beyond the last", feature(vm, EVENT, 1, 1000), -EINVAL);
	expect("PREUNHOOK that nobody asked for", request(vm, PREUNHOOK, NULL), -ENOENT);
	expect("the socket's flags", fcntl(sockets[0], F_GETFL) & O_NONBLOCK, 0);
	expect("UNHOOK", request(vm, UNHOOK, NULL), 0);
	expect("hang-up after UNHOOK", hung_up(sockets[1]), 1);
	expect("UNHOOK twice", request(vm, UNHOOK, NULL), 0);
	expect("HOOK again", hook(vm, more[0], 0), 0);
	expect("GET_VERSION after HOOK again", get_version(more[1], version_id), 1);
	close(more[1]);
	expect("HOOK while the tool has hung up", hook(vm, sockets[0], 0), -EEXIST);
	expect("UNHOOK after the tool hung up", request(vm, UNHOOK, NULL), 0);
	close(sockets[0]);
	close(sockets[1]);
	close(more[0]);
}

/* Turns the UNHOOK event on or off, as a tool. */
static int control_unhook_event(int tool, int on)
{
	struct {
		uint16_t event;
		uint8_t enable, padding[5];
	} body = { .event = 0, .enable = on };
	return tool_command(tool, control_events_id, &body, sizeof(body));
}

static void permissions(int vm)
{
	int sockets[2];
	socket_pair(sockets);
	expect("HOOK for permissions", hook(vm, sockets[0], 0), 0);
	expect("VM_GET_INFO before it is allowed", tool_command(sockets[1], info_id, NULL, 0), -EPERM);
	expect("allow VM_GET_INFO", feature(vm, COMMAND, 1, info_id), 0);
	expect("VM_GET_INFO", tool_command(sockets[1], info_id, NULL, 0), 0);
	expect("disallow VM_GET_INFO", feature(vm, COMMAND, 0, info_id), 0);
	expect("VM_GET_INFO after that", tool_command(sockets[1], info_id, NULL, 0), -EPERM);
	expect("allow VM_CONTROL_EVENTS", feature(vm, COMMAND, 1, control_events_id), 0);
	expect("an event that is not allowed", control_unhook_event(sockets[1], 1), -EPERM);
	expect("allow the event", feature(vm, EVENT, 1, 0), 0);
	expect("the event", control_unhook_event(sockets[1], 1), 0);
	expect("disallow the event", feature(vm, EVENT, 0, 0), 0);
	expect("an event that is no longer allowed", control_unhook_event(sockets[1], 1), -EPERM);
	expect("UNHOOK after permissions", request(vm, UNHOOK, NULL), 0);
	close(sockets[0]);
	close(sockets[1]);
}

static void before_unhook(int vm)
{
	int sockets[2];
	uint16_t event[1024];
	socket_pair(sockets);
	expect("HOOK for PREUNHOOK", hook(vm, sockets[0], 0), 0);
	expect("allow all commands", feature(vm, COMMAND, 1, -1), 0);
	expect("allow all events", feature(vm, EVENT, 1, -1), 0);
	expect("PREUNHOOK before the tool asked for it", request(vm, PREUNHOOK, NULL), -ENOENT);
	expect("the tool asks for it", control_unhook_event(sockets[1], 1), 0);
	expect("PREUNHOOK", request(vm, PREUNHOOK, NULL), 0);
	expect("the tool is told", recv(sockets[1], event, sizeof(event), 0) >= 16 && event[0] == 0, 1);
	expect("PREUNHOOK twice", request(vm, PREUNHOOK, NULL), 0);
	close(sockets[1]);
	for (int tries = 0; request(vm, PREUNHOOK, NULL) == 0 && tries < 2000; tries++)
		usleep(1000);
	expect("PREUNHOOK after the tool hung up", request(vm, PREUNHOOK, NULL), -ENOENT);
	expect("UNHOOK after PREUNHOOK", request(vm, UNHOOK, NULL), 0);
	close(sockets[0]);
}

static void other_descriptors(int vm)
{
	int kvm = open("/dev/kvm", O_RDWR), vcpu = checked("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0));
	expect("UNHOOK on /dev/null", request(open("/dev/null", O_RDONLY), UNHOOK, NULL), -ENOTTY);
	expect("UNHOOK on /dev/kvm", request(kvm, UNHOOK, NULL) < 0, 1);
	expect("HOOK on a vCPU", hook(vcpu, 0, 0) < 0, 1);
	expect("UNHOOK on a closed descriptor", request(987, UNHOOK, NULL), -EBADF);
	expect("another capability", ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
	close(vcpu);
	close(kvm);
}

static void child_of_fork(int vm)
{
	int status, sockets[2];
	socket_pair(sockets);
	expect("HOOK before fork", hook(vm, sockets[0], 0), 0);
	fflush(stdout);
	pid_t child = fork();
	if (child == 0)
		_exit(request(vm, UNHOOK, NULL) == -EIO && hook(vm, sockets[0], 0) == -EIO ? 0 : 1);
	waitpid(child, &status, 0);
	expect("the child of a fork gets EIO", status, 0);
	expect("GET_VERSION after fork", get_version(sockets[1], version_id), 1);
	expect("UNHOOK after fork", request(vm, UNHOOK, NULL), 0);
	close(sockets[0]);
	close(sockets[1]);
}

static void vm_of_a_child(void)
{
	int status, sockets[2];
	socket_pair(sockets);
	fflush(stdout);
	pid_t child = fork();
	if (child == 0)
		_exit(hook(new_vm(), sockets[0], 0) == 0 && get_version(sockets[1], version_id) == 1 ? 0 : 1);
	waitpid(child, &status, 0);
	expect("a child hooks a VM of its own", status, 0);
	close(sockets[0]);
	expect("hang-up after the child has ended", hung_up(sockets[1]), 1);
	close(sockets[1]);
}

static void two_vms(int first)
{
	int second = new_vm(), a[2], b[2];
	socket_pair(a);
	socket_pair(b);
	expect("HOOK of the first VM", hook(first, a[0], 0), 0);
	expect("HOOK of the second VM", hook(second, b[0], 0), 0);
	expect("GET_VERSION of the second VM", get_version(b[1], version_id), 1);
	int same = dup(first);
	expect("HOOK by another descriptor of the same VM", hook(same, b[0], 0), -EEXIST);
	expect("UNHOOK of the first VM", request(same, UNHOOK, NULL), 0);
	close(same);
	expect("GET_VERSION of the second VM still", get_version(b[1], version_id), 1);
	close(second);
	expect("hang-up after the second VM was closed", hung_up(b[1]), 1);
	for (int i = 0; i < 2; i++) {
		close(a[i]);
		close(b[i]);
	}
}

#define THREADS 8
static pthread_barrier_t together;
static int contended_vm, outcomes[THREADS];

static void *hook_together(void *number)
{
	int sockets[2];
	socket_pair(sockets);
	pthread_barrier_wait(&together);
	outcomes[(intptr_t)number] = hook(contended_vm, sockets[0], 0);
	return NULL;
}

static void threads_at_once(int vm)
{
	pthread_t threads[THREADS];
	int hooked = 0, refused = 0;
	contended_vm = vm;
	pthread_barrier_init(&together, NULL, THREADS);
	for (intptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, hook_together, (void *)i);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		hooked += outcomes[i] == 0;
		refused += outcomes[i] == -EEXIST;
	}
	expect("threads that hooked", hooked, 1);
	expect("threads that were refused", refused, THREADS - 1);
	expect("UNHOOK after the threads", request(vm, UNHOOK, NULL), 0);
}

int main(int argc, char **argv)
{
	use_series(argc > 1 ? argv[1] : "v9");
	int is_v9 = HOOK == _IOW(KVMIO, 0xc3, struct introspection_hook);
	version_id = is_v9 ? 1 : 2;
	info_id = is_v9 ? 4 : 8;
	control_events_id = is_v9 ? 5 : 10;
	int vm = new_vm(), capability = is_v9 ? 184 : 193;
	if (feature(vm, COMMAND, 1, -1) == -ENOTTY) {
		printf("KVM introspection is not there: %s\n", strerror(ENOTTY));
		return NOT_SUPPORTED;
	}
	if (feature(vm, COMMAND, 1, -1) == -EPERM) {
		expect("the capability while disabled", ioctl(vm, KVM_CHECK_EXTENSION, capability), is_v9);
		expect("UNHOOK while disabled", request(vm, UNHOOK, NULL), -EPERM);
		expect("PREUNHOOK while disabled", request(vm, PREUNHOOK, NULL), -EPERM);
		expect("HOOK with a bad pointer while disabled", request(vm, HOOK, (void *)8), -EPERM);
		return failures ? 1 : DISABLED;
	}
	expect("the capability", ioctl(vm, KVM_CHECK_EXTENSION, capability), 1);
	errors_before_hook(vm);
	hook_errors(vm);
	life_of_a_hook(vm);
	permissions(vm);
	before_unhook(vm);
	other_descriptors(vm);
	child_of_fork(vm);
	vm_of_a_child();
	two_vms(vm);
	threads_at_once(vm);
	if (failures == 0)
		printf("all requests were answered as specified\n");
	return failures != 0;
}
