/*
 * datagrams: ranks send each other UDP datagrams, every one with a number.
 *
 * Usage: datagrams ROUNDS [REPORT]
 *
 * Every round each rank sends one datagram to each rank and takes what has
 * come. A datagram carries its number in its pair and the time at which it was
 * made. MPI serves only to exchange addresses, and every REPORT rounds (default
 * 100) for an audit: each rank tells every sender the last number and time that
 * it has got, and the sender looks whether it has sent that. So a receiver that
 * remembers what its sender, restored from a checkpoint, never sent is found
 * out, even when the sender has sent another datagram of the same number since.
 *
 * UDP may lose datagrams; they are counted. A datagram that comes twice, or
 * that was never sent, is an error.
 *
 * Exit code 0: all was right; 1: something was not; 2: bad arguments.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { remembered = 65536, biggest = 1400 }; /* datagrams that a sender remembers per receiver; bytes */

struct datagram {
	uint64_t number, made; /* ns of the monotonic clock */
	uint32_t from, to;
};

struct peer {
	struct sockaddr_in address;
	uint64_t sent, *made; /* by number modulo remembered */
	uint64_t last, last_made, got, twice, foreign;
};

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	MPI_Abort(MPI_COMM_WORLD, 1);
}

/* The system's first address that is not the loopback's. */
static in_addr_t own_address(void)
{
	struct ifaddrs *all;
	in_addr_t found = htonl(INADDR_LOOPBACK);
	if (getifaddrs(&all))
		fail("datagrams: own address");
	for (struct ifaddrs *i = all; i; i = i->ifa_next)
		if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET && !(i->ifa_flags & IFF_LOOPBACK)) {
			found = ((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr.s_addr;
			break;
		}
	freeifaddrs(all);
	return found;
}

static void take(int s, int rank, int size, struct peer *peers)
{
	char buf[biggest];
	struct datagram d;
	ssize_t n;
	while ((n = recv(s, buf, sizeof buf, MSG_DONTWAIT)) >= 0) {
		memcpy(&d, buf, sizeof d);
		if ((size_t)n < sizeof d || d.to != (uint32_t)rank || d.from >= (uint32_t)size) {
			peers[rank].foreign++;
			continue;
		}
		struct peer *p = &peers[d.from];
		p->got++;
		if (d.number <= p->last) { /* the guests' network keeps the order of a pair */
			p->twice++;
			continue;
		}
		p->last = d.number;
		p->last_made = d.made;
	}
}

int main(int argc, char **argv)
{
	int rank, size;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	long rounds = argc > 1 ? atol(argv[1]) : 0, report = argc > 2 ? atol(argv[2]) : 100;
	if (rounds < 1 || report < 1) {
		if (rank == 0)
			fprintf(stderr, "usage: datagrams ROUNDS [REPORT]\n");
		MPI_Finalize();
		return 2;
	}
	int s = socket(AF_INET, SOCK_DGRAM, 0), room = 4 << 20;
	struct sockaddr_in own = {.sin_family = AF_INET}, *addresses = calloc((size_t)size, sizeof *addresses);
	socklen_t length = sizeof own;
	struct peer *peers = calloc((size_t)size, sizeof *peers);
	uint64_t (*out)[2] = calloc((size_t)size, sizeof *out), (*in)[2] = calloc((size_t)size, sizeof *in);
	if (!addresses || !peers || !out || !in)
		fail("datagrams: memory");
	(void)setsockopt(s, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
	if (s < 0 || bind(s, (struct sockaddr *)&own, sizeof own) || getsockname(s, (struct sockaddr *)&own, &length))
		fail("datagrams: socket");
	own.sin_addr.s_addr = own_address();
	MPI_Allgather(&own, sizeof own, MPI_BYTE, addresses, sizeof own, MPI_BYTE, MPI_COMM_WORLD);
	for (int i = 0; i < size; i++) {
		peers[i].address = addresses[i];
		if (!(peers[i].made = calloc(remembered, sizeof *peers[i].made)))
			fail("datagrams: memory");
	}
	uint64_t never_sent = 0;
	for (long round = 1; round <= rounds; round++) {
		for (int to = 0; to < size; to++) {
			if (to == rank)
				continue;
			char buf[biggest] = {0};
			struct peer *p = &peers[to];
			struct datagram d = {.number = ++p->sent, .made = now(), .from = (uint32_t)rank, .to = (uint32_t)to};
			p->made[d.number % remembered] = d.made;
			memcpy(buf, &d, sizeof d);
			size_t bytes = sizeof d + (size_t)(d.made % (biggest - sizeof d));
			(void)sendto(s, buf, bytes, 0, (struct sockaddr *)&p->address, sizeof p->address); /* or it is lost */
		}
		take(s, rank, size, peers);
		usleep(1000); /* datagrams are on the way nearly all the time, without filling anything */
		if (round % report && round != rounds)
			continue;
		if (round == rounds) { /* the last ones come to their end */
			MPI_Barrier(MPI_COMM_WORLD);
			usleep(200000);
			take(s, rank, size, peers);
		}
		for (int i = 0; i < size; i++) {
			out[i][0] = peers[i].last;
			out[i][1] = peers[i].last_made;
		}
		MPI_Alltoall(out, 2, MPI_UINT64_T, in, 2, MPI_UINT64_T, MPI_COMM_WORLD);
		for (int i = 0; i < size; i++) {
			uint64_t number = in[i][0];
			if (number > peers[i].sent || (number && peers[i].sent - number < remembered && peers[i].made[number % remembered] != in[i][1])) {
				never_sent++;
				fprintf(stderr, "rank %d has got datagram %llu from rank %d, which has not sent it\n", i, (unsigned long long)number, rank);
			}
		}
		if (rank == 0) {
			printf("round %ld\n", round);
			fflush(stdout);
		}
	}
	uint64_t mine[5] = {0, 0, never_sent, 0, peers[rank].foreign}, sum[5];
	for (int i = 0; i < size; i++) {
		mine[0] += peers[i].sent;
		mine[1] += peers[i].got;
		mine[3] += peers[i].twice;
	}
	MPI_Allreduce(mine, sum, 5, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0) {
		printf("sent %llu\n", (unsigned long long)sum[0]);
		printf("received %llu\n", (unsigned long long)sum[1]);
		printf("never sent %llu\n", (unsigned long long)sum[2]);
		printf("twice %llu\n", (unsigned long long)sum[3]);
		printf("foreign %llu\n", (unsigned long long)sum[4]);
	}
	MPI_Finalize();
	return sum[2] || sum[3] || sum[4];
}
