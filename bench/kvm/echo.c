/* Connects to a Unix socket and answers every REQUEST bytes with REPLY bytes: echo PATH REQUEST REPLY */
#include "../../test/kvm/vmm.h"

int main(int argc, char **argv)
{
	static char bytes[65536];
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int request_size = atoi(argv[2]), reply_size = atoi(argv[3]), fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
	checked("connect", connect(fd, (struct sockaddr *)&address, sizeof(address)));
	for (ssize_t size = 0, got; (got = read(fd, bytes, request_size - size)) > 0;) {
		size += got;
		if (size < request_size)
			continue;
		size = 0;
		if (write(fd, bytes, reply_size) != reply_size)
			return 1;
	}
	return 0;
}
