/*
 * sweep: every rank goes through a large array again and again.
 *
 * Usage: sweep MIB STEPS [PAGES]
 *
 * Each rank fills MIB mebibytes, prints "ready" (rank 0), and then makes STEPS
 * steps. A step updates the next PAGES pages (default 512) and checks what it
 * finds there; after every step all ranks meet, and rank 0 prints "step N".
 * What it prints depends on nothing but the arguments, so it can be compared
 * and timed across restarts.
 *
 * Exit code 0: all was right; 1: a word was wrong; 2: bad arguments.
 */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PAGE_WORDS 512

/* What word i holds after it was updated n times: half of its bytes vary. */
static uint64_t expected(size_t i, uint64_t n)
{
	return ((uint64_t)i * 0x9e3779b97f4a7c15u >> 32) + (n << 32);
}

int main(int argc, char **argv)
{
	int rank;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	long mib = argc > 1 ? atol(argv[1]) : 0, steps = argc > 2 ? atol(argv[2]) : 0, per = argc > 3 ? atol(argv[3]) : 512;
	if (mib < 1 || mib > 1 << 20 || steps < 1 || per < 1) {
		if (rank == 0)
			fprintf(stderr, "usage: sweep MIB STEPS [PAGES]\n");
		MPI_Finalize();
		return 2;
	}
	size_t pages = (size_t)mib * 256, page = 0;
	uint64_t *word = malloc(pages * PAGE_WORDS * sizeof *word), round = 0;
	if (!word) {
		fprintf(stderr, "sweep: out of memory\n");
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	for (size_t i = 0; i < pages * PAGE_WORDS; i++)
		word[i] = expected(i, 0);
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == 0) {
		printf("ready\n");
		fflush(stdout);
	}
	long wrong = 0, all = 0;
	for (long s = 1; s <= steps; s++) {
		for (long k = 0; k < per; k++) {
			for (size_t i = page * PAGE_WORDS; i < (page + 1) * PAGE_WORDS; i++) {
				wrong += word[i] != expected(i, round);
				word[i] = expected(i, round + 1);
			}
			if (++page == pages) {
				page = 0;
				round++;
			}
		}
		MPI_Barrier(MPI_COMM_WORLD);
		if (rank == 0) {
			printf("step %ld\n", s);
			fflush(stdout);
		}
	}
	MPI_Allreduce(&wrong, &all, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0)
		printf("wrong %ld\n", all);
	free(word);
	MPI_Finalize();
	return all != 0;
}
