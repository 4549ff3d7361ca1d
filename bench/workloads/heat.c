/*
 * heat: Jacobi iterations on a square grid, its rows dealt out to the ranks.
 *
 * Usage: heat N ITERATIONS [REPORT [SLEEP_US]]
 *
 * Every iteration exchanges boundary rows with both neighbours and every
 * REPORT iterations (default 100) all ranks agree on the residual and rank 0
 * prints it. At the end rank 0 gathers the grid, solves the same problem
 * again by itself in the same order of operations, and compares bit by bit:
 * a lost, doubled or reordered message cannot go unnoticed.
 *
 * Exit code 0: the results are equal; 1: they differ; 2: bad arguments.
 */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static double boundary(int row, int col, int n)
{
	if (row == 0)
		return sin(3.0 * col / n) + 1.0;
	if (row == n - 1)
		return cos(5.0 * col / n);
	return (double)row / n;
}

static void fill(double *grid, int first, int rows, int n)
{
	for (int r = 0; r < rows; r++) {
		for (int c = 0; c < n; c++) {
			int row = first + r;
			int edge = row == 0 || row == n - 1 || c == 0 || c == n - 1;
			grid[(size_t)r * n + c] = edge ? boundary(row, c, n) : 0.0;
		}
	}
}

/* One sweep over rows lo..hi-1 of local storage; returns the largest change. */
static double sweep(const double *from, double *to, int lo, int hi, int n)
{
	double worst = 0.0;
	for (int r = lo; r < hi; r++) {
		const double *up = from + (size_t)(r - 1) * n, *here = from + (size_t)r * n, *down = from + (size_t)(r + 1) * n;
		double *out = to + (size_t)r * n;
		for (int c = 1; c < n - 1; c++) {
			out[c] = 0.25 * (up[c] + down[c] + here[c - 1] + here[c + 1]);
			double change = fabs(out[c] - here[c]);
			if (change > worst)
				worst = change;
		}
	}
	return worst;
}

static int first_row(int rank, int size, int n)
{
	return (int)((long)n * rank / size);
}

static void *need(void *p)
{
	if (!p) {
		fprintf(stderr, "heat: out of memory\n");
		MPI_Abort(MPI_COMM_WORLD, 3);
	}
	return p;
}

int main(int argc, char **argv)
{
	int rank, size;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	int n = argc > 1 ? atoi(argv[1]) : 0, iterations = argc > 2 ? atoi(argv[2]) : 0;
	int report = argc > 3 ? atoi(argv[3]) : 100, pause_us = argc > 4 ? atoi(argv[4]) : 0;
	if (n < 3 || n < size || iterations < 1 || report < 1) {
		if (rank == 0)
			fprintf(stderr, "usage: heat N ITERATIONS [REPORT [SLEEP_US]]  (N at least 3 and the number of ranks)\n");
		MPI_Finalize();
		return 2;
	}
	int first = first_row(rank, size, n), rows = first_row(rank + 1, size, n) - first;
	/* One row of the neighbours above and below. */
	size_t cells = (size_t)(rows + 2) * n;
	double *grid = need(calloc(cells, sizeof *grid)), *next = need(calloc(cells, sizeof *next));
	fill(grid + n, first, rows, n);
	memcpy(next, grid, cells * sizeof *grid);
	int up = rank > 0 ? rank - 1 : MPI_PROC_NULL, down = rank < size - 1 ? rank + 1 : MPI_PROC_NULL;
	int lo = first == 0 ? 2 : 1, hi = first + rows == n ? rows : rows + 1;
	double begun = MPI_Wtime();
	for (int i = 1; i <= iterations; i++) {
		MPI_Sendrecv(grid + n, n, MPI_DOUBLE, up, 1, grid + (size_t)(rows + 1) * n, n, MPI_DOUBLE, down, 1,
			     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		MPI_Sendrecv(grid + (size_t)rows * n, n, MPI_DOUBLE, down, 2, grid, n, MPI_DOUBLE, up, 2,
			     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		double change = sweep(grid, next, lo, hi, n);
		double *t = grid;
		grid = next;
		next = t;
		if (i % report == 0) {
			double worst;
			MPI_Allreduce(&change, &worst, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
			if (rank == 0) {
				printf("iteration %d change %.17g\n", i, worst);
				fflush(stdout);
			}
		}
		if (pause_us > 0)
			usleep(pause_us);
	}
	double took = MPI_Wtime() - begun;
	int *counts = need(malloc(size * sizeof *counts)), *offsets = need(malloc(size * sizeof *offsets));
	for (int r = 0; r < size; r++) {
		offsets[r] = first_row(r, size, n) * n;
		counts[r] = first_row(r + 1, size, n) * n - offsets[r];
	}
	double *all = rank == 0 ? need(malloc((size_t)n * n * sizeof *all)) : NULL;
	MPI_Gatherv(grid + n, rows * n, MPI_DOUBLE, all, counts, offsets, MPI_DOUBLE, 0, MPI_COMM_WORLD);
	int differs = 0;
	if (rank == 0) {
		double *a = need(malloc((size_t)n * n * sizeof *a)), *b = need(malloc((size_t)n * n * sizeof *b));
		fill(a, 0, n, n);
		memcpy(b, a, (size_t)n * n * sizeof *a);
		for (int i = 1; i <= iterations; i++) {
			sweep(a, b, 1, n - 1, n);
			double *t = a;
			a = b;
			b = t;
		}
		differs = memcmp(a, all, (size_t)n * n * sizeof *a) != 0;
		printf("heat: %d ranks, %d x %d, %d iterations\n", size, n, n, iterations);
		printf("Verification %s\n", differs ? "FAILED" : "SUCCESSFUL");
		fflush(stdout);
		fprintf(stderr, "heat: %.3f s\n", took);
		FILE *f = fopen("heat.out", "w");
		if (f) {
			fprintf(f, "%d %d %.17g\n", n, iterations, all[(size_t)(n / 2) * n + n / 2]);
			fclose(f);
		}
	}
	MPI_Bcast(&differs, 1, MPI_INT, 0, MPI_COMM_WORLD);
	MPI_Finalize();
	return differs ? 1 : 0;
}
