/* bt-mz, sp-mz and lu-mz: the benchmark is the solver that is linked in. */
#include <mpi.h>
#include <omp.h>
#include <stdio.h>

#include "options.h"
#include "report.h"
#include "run.h"
#include "solver.h"
#include "zones.h"

enum { EXIT_VERIFIED, EXIT_FAILED, EXIT_BAD_ARGUMENTS, EXIT_NOT_VERIFIED, EXIT_NO_MEMORY };

/* All ranks see the same arguments and come to the same conclusion; one prints it. */
static int bad_arguments(int rank, const char *program, const char *error)
{
	if (rank == 0)
		fprintf(stderr, "%s: %s\n", program, error);
	return EXIT_BAD_ARGUMENTS;
}

static int out_of_memory(int rank, const char *program)
{
	fprintf(stderr, "%s: rank %d has no memory for its zones; use more nodes or a smaller class\n", program, rank);
	MPI_Abort(MPI_COMM_WORLD, EXIT_NO_MEMORY);
	return EXIT_NO_MEMORY;
}

static int run_class(const char *program, const struct options *options, int rank, int ranks)
{
	struct result result = {
		.benchmark = solver.name,
		.problem = find_problem(solver.benchmark, options->class),
		.ranks = ranks,
		.threads = omp_get_max_threads(),
	};
	const int zones = result.problem->zones[X] * result.problem->zones[Y];
	if (ranks > zones) {
		char error[128];
		snprintf(error, sizeof error, "class %c has %d zones, so at most %d ranks can share them, not %d",
			 options->class, zones, zones, ranks);
		return bad_arguments(rank, program, error);
	}
	result.iterations = options->iterations ? options->iterations : result.problem->iterations;
	MPI_Allreduce(MPI_IN_PLACE, &result.threads, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

	struct partition partition;
	if (!make_partition(&partition, result.problem, ranks))
		return out_of_memory(rank, program);
	result.imbalance = imbalance(&partition);
	if (rank == 0)
		print_heading(&result);
	bool done = run(&solver, &partition, rank, &result);
	free_partition(&partition);
	if (!done)
		return out_of_memory(rank, program);
	if (rank == 0) {
		print_result(&result);
		if (options->json)
			print_json(&result);
	}
	switch (result.verdict) {
	case SUCCESSFUL:
		return EXIT_VERIFIED;
	case UNSUCCESSFUL:
		return EXIT_FAILED;
	default:
		return EXIT_NOT_VERIFIED;
	}
}

int main(int argc, char **argv)
{
	int provided, rank, ranks, code;
	MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);

	struct options options;
	char error[256];
	if (!parse_options(argc, argv, &options, error, sizeof error)) {
		code = bad_arguments(rank, argv[0], error);
	} else if (options.help) {
		if (rank == 0)
			print_help(argv[0]);
		code = EXIT_VERIFIED;
	} else {
		code = run_class(argv[0], &options, rank, ranks);
	}
	MPI_Finalize();
	return code;
}
