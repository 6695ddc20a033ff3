/*
 * Runs inside a Linux guest under test.
 *
 *   guest page   maps a page of memory that stays where it is, prints its frame number, waits for ever
 *   guest int3   executes int3
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <fcntl.h>

static int page(void)
{
	char *p = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0);
	uint64_t entry;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (p == MAP_FAILED || fd < 0)
		return 1;
	memset(p, 0x5a, 4096);
	if (pread(fd, &entry, sizeof(entry), (uintptr_t)p / 4096 * 8) != sizeof(entry))
		return 1;
	printf("%llu\n", (unsigned long long)(entry & ((1ULL << 55) - 1)));
	fflush(stdout);
	close(1);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "page"))
		return page();
	if (argc == 2 && !strcmp(argv[1], "int3")) {
		__asm__ volatile("int3");
		return 0;
	}
	return 2;
}
