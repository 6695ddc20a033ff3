/* A device manager that ends while its VM is hooked, in the way that is asked for. */
#include "vmm.h"

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "exit";
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	use_series("v12");
	int vm = new_vm(), tool = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argc > 2 ? argv[2] : "");
	checked("connect", connect(tool, (struct sockaddr *)&address, sizeof(address)));
	if (hook(vm, tool, 0) != 0)
		return NOT_SUPPORTED;
	close(tool);
	printf("hooked\n");
	fflush(stdout);
	if (strcmp(how, "signal") == 0)
		raise(SIGTERM);
	if (strcmp(how, "close") == 0)
		close(vm);
	if (strcmp(how, "exec") == 0)
		execlp("cat", "cat", NULL);
	if (strcmp(how, "wait") == 0 || strcmp(how, "close") == 0)
		while (getchar() != EOF)
			;
	printf("leaving\n");
	return 42;
}
