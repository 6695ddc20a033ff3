/* A process with threads, files and sockets, to be found from outside. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static void *waiting(void *name) {
  prctl(PR_SET_NAME, name);
  for (;;) pause();
  return NULL;
}

static int inet(int family, int type, int port, int listens) {
  int fd = socket(family, type, 0);
  struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback};
  struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(port)};
  four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  void *address = family == AF_INET ? (void *)&four : (void *)&six;
  socklen_t size = family == AF_INET ? sizeof four : sizeof six;
  if (bind(fd, address, size) != 0) exit(10);
  if (listens && listen(fd, 5) != 0) exit(11);
  return fd;
}

static void local(const char *path, size_t length) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  memcpy(address.sun_path, path, length);
  if (bind(fd, (void *)&address, sizeof address.sun_family + length) != 0 || listen(fd, 5) != 0) exit(12);
}

/* A socket filter that takes nothing: r0 = 0; exit. */
static void filter(void) {
  struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
  union bpf_attr attributes = {
      .prog_type = BPF_PROG_TYPE_SOCKET_FILTER,
      .insns = (__u64)code,
      .insn_cnt = 2,
      .license = (__u64) "GPL",
      .prog_name = "take_nothing",
  };
  syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes);
}

int main(int count, char **arguments) {
  static char *names[] = {"first thread", "second thread"};
  int pair[2], pipes[2];
  struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(7001)};
  target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (count == 2 && strcmp(arguments[1], "as-user") == 0) {
    if (setresuid(1000, 1000, 1000) != 0) exit(15);
    for (;;) pause();
  }
  inet(AF_INET, SOCK_STREAM, 7001, 1);
  int client = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(client, (void *)&target, sizeof target) != 0) exit(13);
  inet(AF_INET6, SOCK_STREAM, 7002, 1);
  inet(AF_INET, SOCK_DGRAM, 7003, 0);
  inet(AF_INET6, SOCK_DGRAM, 7004, 0);
  local("/tmp/program.sock", sizeof "/tmp/program.sock");
  local("\0abstract", 9);
  socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
  if (pipe(pipes) != 0) exit(14);
  eventfd(0, 0);
  filter();
  memfd_create("memory", 0);
  int file = open("/tmp/deleted", O_RDWR | O_CREAT, 0600);
  write(file, "twelve bytes", 12);
  mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
  unlink("/tmp/deleted");
  mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int i = 0; i < 2; i++) {
    pthread_t thread;
    pthread_create(&thread, NULL, waiting, names[i]);
  }
  puts("ready");
  fflush(stdout);
  for (;;) pause();
}
