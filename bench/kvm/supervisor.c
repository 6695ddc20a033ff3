/*
 * The least that answers introspection requests by seccomp notification: finds out what the descriptor is, reads the
 * argument, answers 0. supervisor PROGRAM ARGUMENTS …
 */
#define _GNU_SOURCE
#include "../../test/kvm/vmm.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

static void send_descriptor(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 }, byte = 0;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	checked("sendmsg", sendmsg(socket, &message, 0));
}

static int receive_descriptor(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
				  .msg_controllen = sizeof(control) };
	int fd;
	checked("recvmsg", recvmsg(socket, &message, 0));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return fd;
}

int main(int argc, char **argv)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x4018aec8, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x4008aeca, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x0000aec9, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };
	int sockets[2];
	socket_pair(sockets);
	if (fork() == 0) {
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		int fd = checked("seccomp", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
						    SECCOMP_FILTER_FLAG_NEW_LISTENER, &program));
		send_descriptor(sockets[0], fd);
		close(fd);
		execvp(argv[1], argv + 1);
		return 1;
	}
	struct pollfd listener = { .fd = receive_descriptor(sockets[1]), .events = POLLIN };
	ioctl(listener.fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1);
	while (poll(&listener, 1, -1) >= 0 && (listener.revents & POLLIN)) {
		struct seccomp_notif request = { 0 };
		struct seccomp_notif_resp response = { 0 };
		char path[64], target[64], argument[24];
		if (ioctl(listener.fd, SECCOMP_IOCTL_NOTIF_RECV, &request) < 0)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", request.pid, (int)request.data.args[0]);
		if (readlink(path, target, sizeof(target)) < 0)
			return 1;
		snprintf(path, sizeof(path), "/proc/%d/mem", request.pid);
		int memory = open(path, O_RDONLY);
		if (pread(memory, argument, (request.data.args[1] >> 16) & 0x3fff, request.data.args[2]) < 0)
			return 1;
		close(memory);
		response.id = request.id;
		ioctl(listener.fd, SECCOMP_IOCTL_NOTIF_SEND, &response);
	}
	wait(NULL);
	return 0;
}
