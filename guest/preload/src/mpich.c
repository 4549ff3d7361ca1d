/*
 * libvft-mpich: keeps MPICH over UCX from hanging at the end of a program.
 *
 * MPI_Finalize of MPICH's ch4:ucx device first disconnects every peer, which
 * over TCP waits until the peer has answered, and then waits for all ranks in
 * PMI's barrier: a blocking read() during which UCX makes no progress. A rank
 * that is there does not answer any more, so a rank that disconnects later
 * waits for ever. It happens without vft too, the more often the later one
 * rank is than another (MPICH 4.0.2 with UCX 1.13.1: one run in ten on a busy
 * machine; openucx/ucx issue 8738 has the same with Open MPI).
 *
 * Preloaded into a rank, this library lets UCX go on while PMI waits. It
 * replaces functions that libmpich calls across libraries:
 *
 *   ucp_worker_create, ucp_worker_destroy   to know the workers there are
 *   read                                    on PMI's descriptor: wait for data
 *                                           and make progress, then read
 *
 * It does nothing in programs that never make a UCX worker.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ucs_status_t is a packed enum of one byte. Handles and parameters are passed on unseen. */
typedef signed char status;
typedef status (*create_function)(void *context, const void *params, void **worker);
typedef void (*destroy_function)(void *worker);
typedef unsigned (*progress_function)(void *worker);
typedef ssize_t (*read_function)(int fd, void *buf, size_t n);

/* MPICH makes a worker for each virtual interface, at most 64. */
#define MAX_WORKERS 64
static void *workers[MAX_WORKERS];
static progress_function progress;

status ucp_worker_create(void *context, const void *params, void **worker)
{
	create_function next = (create_function)dlsym(RTLD_NEXT, "ucp_worker_create");
	status s = next(context, params, worker);
	progress_function p = (progress_function)dlsym(RTLD_NEXT, "ucp_worker_progress");
	for (int i = 0; s == 0 && p && i < MAX_WORKERS; i++) {
		if (!workers[i]) {
			workers[i] = *worker;
			progress = p;
			break;
		}
	}
	return s;
}

void ucp_worker_destroy(void *worker)
{
	destroy_function next = (destroy_function)dlsym(RTLD_NEXT, "ucp_worker_destroy");
	for (int i = 0; i < MAX_WORKERS; i++) {
		if (workers[i] == worker)
			workers[i] = NULL;
	}
	next(worker);
}

static int pmi_descriptor(void)
{
	const char *text = getenv("PMI_FD");
	return text ? atoi(text) : -1;
}

/* How long to look for data before UCX gets another turn, when it had nothing to do. */
#define IDLE_MS 1

static void progress_until_readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int wait = 0;
	while (poll(&p, 1, wait) == 0) {
		unsigned done = 0;
		for (int i = 0; i < MAX_WORKERS; i++) {
			if (workers[i])
				done += progress(workers[i]);
		}
		wait = done ? 0 : IDLE_MS;
	}
}

ssize_t read(int fd, void *buf, size_t n)
{
	static read_function next;
	if (progress && fd == pmi_descriptor())
		progress_until_readable(fd);
	if (!next)
		next = (read_function)dlsym(RTLD_NEXT, "read");
	return next ? next(fd, buf, n) : syscall(SYS_read, fd, buf, n);
}
