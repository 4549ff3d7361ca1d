/*
 * alltoall: every rank sends to every other, again and again.
 *
 * Usage: alltoall BYTES ITERATIONS [REPORT]
 *
 * Every iteration each rank sends BYTES bytes to each rank, different ones
 * every time, and checks what it got: a lost, doubled or stale message cannot
 * go unnoticed. Every REPORT iterations (default 1000) rank 0 prints a line.
 * At the end it prints how many TCP segments the ranks' systems sent again
 * since the program began, and the time that the iterations took.
 *
 * Exit code 0: all was right; 1: a message was wrong; 2: bad arguments.
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Segments that this system's TCP has sent again since it started. */
static long retransmitted(void)
{
	char names[2048], values[2048];
	long found = -1;
	FILE *f = fopen("/proc/net/snmp", "r");
	if (!f)
		return -1;
	while (fgets(names, sizeof names, f) && fgets(values, sizeof values, f)) {
		if (strncmp(names, "Tcp:", 4) != 0)
			continue;
		char *n, *v, *name = strtok_r(names, " \n", &n), *value = strtok_r(values, " \n", &v);
		while (name && value) {
			if (strcmp(name, "RetransSegs") == 0)
				found = atol(value);
			name = strtok_r(NULL, " \n", &n);
			value = strtok_r(NULL, " \n", &v);
		}
	}
	fclose(f);
	return found;
}

static uint64_t expected(int from, int to, long iteration, int word)
{
	uint64_t x = ((uint64_t)iteration << 24) ^ ((uint64_t)from << 16) ^ ((uint64_t)to << 8) ^ (uint64_t)word;
	return x * 0x9e3779b97f4a7c15u;
}

int main(int argc, char **argv)
{
	int rank, size;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	long bytes = argc > 1 ? atol(argv[1]) : 0, iterations = argc > 2 ? atol(argv[2]) : 0;
	long report = argc > 3 ? atol(argv[3]) : 1000;
	if (bytes < 8 || bytes % 8 || bytes > 1 << 28 || iterations < 1 || report < 1) {
		if (rank == 0)
			fprintf(stderr, "usage: alltoall BYTES ITERATIONS [REPORT]   (BYTES a multiple of 8, up to 268435456)\n");
		MPI_Finalize();
		return 2;
	}
	int words = (int)(bytes / 8);
	uint64_t *out = malloc((size_t)bytes * size), *in = malloc((size_t)bytes * size);
	if (!out || !in) {
		fprintf(stderr, "alltoall: out of memory\n");
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	long before = retransmitted(), wrong = 0;
	MPI_Barrier(MPI_COMM_WORLD);
	double begun = MPI_Wtime();
	for (long i = 1; i <= iterations; i++) {
		/* The first and the last word tell messages apart; the rest is there to be carried. */
		for (int to = 0; to < size; to++) {
			out[(size_t)to * words] = expected(rank, to, i, 0);
			out[(size_t)to * words + words - 1] = expected(rank, to, i, words - 1);
		}
		MPI_Alltoall(out, words, MPI_UINT64_T, in, words, MPI_UINT64_T, MPI_COMM_WORLD);
		for (int from = 0; from < size; from++) {
			wrong += in[(size_t)from * words] != expected(from, rank, i, 0);
			wrong += in[(size_t)from * words + words - 1] != expected(from, rank, i, words - 1);
		}
		if (rank == 0 && i % report == 0) {
			printf("iteration %ld\n", i);
			fflush(stdout);
		}
	}
	double took = MPI_Wtime() - begun;
	long mine[2] = {retransmitted() - before, wrong}, worst[2];
	MPI_Reduce(mine, worst, 2, MPI_LONG, MPI_MAX, 0, MPI_COMM_WORLD);
	if (rank == 0) {
		printf("retransmitted %ld\n", worst[0]);
		printf("wrong %ld\n", worst[1]);
		printf("seconds %.3f\n", took);
	}
	MPI_Bcast(&worst[1], 1, MPI_LONG, 0, MPI_COMM_WORLD);
	free(out);
	free(in);
	MPI_Finalize();
	return worst[1] != 0;
}
