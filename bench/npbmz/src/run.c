#include "run.h"

#include <mpi.h>
#include <omp.h>
#include <stdlib.h>

#include "exchange.h"
#include "initial.h"
#include "norms.h"
#include "rhs.h"
#include "timing.h"

/* What a rank works on. */
struct work {
	const struct solver *solver;
	struct zone *zones;
	int count;
	struct exchange *exchange;
	double **scratch; /* of each thread */
	int threads;
};

/* Mesh spacing, equation (18). */
static double mesh_spacing(const struct solver *solver, const struct problem *problem, int n, int direction)
{
	if (solver->mesh == OWN_MESH)
		return 1.0 / (n - 1);
	int zones = direction == Z ? 1 : problem->zones[direction];
	return 1.0 / ((double)(problem->size[direction] - 1) / zones);
}

/* This rank's zones, in the order of their ids. */
static bool make_zones(struct work *work, const struct problem *problem, const struct partition *partition, int rank)
{
	work->zones = calloc((size_t)partition->count, sizeof *work->zones);
	if (!work->zones)
		return false;
	for (int id = 0; id < partition->count; id++) {
		if (partition->owner[id] != rank)
			continue;
		struct zone *zone = &work->zones[work->count++];
		zone->id = id;
		zone->dt = problem->dt;
		for (int d = X; d <= Z; d++) {
			zone->n[d] = zone_size(partition, id, d);
			zone->spacing[d] = mesh_spacing(work->solver, problem, zone->n[d], d);
		}
		if (!make_fields(zone))
			return false;
	}
	return true;
}

static bool make_scratch(struct work *work)
{
	size_t most = 0;
	for (int z = 0; z < work->count; z++) {
		size_t values = work->solver->scratch(work->zones[z].n);
		most = values > most ? values : most;
	}
	work->threads = omp_get_max_threads();
	work->scratch = calloc((size_t)work->threads, sizeof *work->scratch);
	if (!work->scratch)
		return false;
	for (int t = 0; t < work->threads; t++) {
		const size_t line = 64;
		work->scratch[t] = aligned_alloc(line, (most * sizeof(double) + line - 1) / line * line);
		if (!work->scratch[t])
			return false;
	}
	return true;
}

static void free_work(struct work *work)
{
	for (int t = 0; work->scratch && t < work->threads; t++)
		free(work->scratch[t]);
	free(work->scratch);
	free_exchange(work->exchange);
	for (int z = 0; z < work->count; z++)
		free_fields(&work->zones[z]);
	free(work->zones);
}

/* Sets the state in which time begins. */
static void set_back(struct work *work)
{
	for (int z = 0; z < work->count; z++) {
		set_initial(&work->zones[z]);
		if (!work->solver->begin)
			continue;
#pragma omp parallel
		work->solver->begin(&work->zones[z]);
	}
}

/* One time step: the zones are coupled, then each advances by itself. */
static void step(struct work *work)
{
	exchange_faces(work->exchange);
#pragma omp parallel
	for (int z = 0; z < work->count; z++)
		work->solver->advance(&work->zones[z], work->scratch[omp_get_thread_num()]);
}

/* Norms of all zones, on all ranks. */
static struct norms sum_norms(struct work *work)
{
	struct norms norms = { 0 };
	for (int z = 0; z < work->count; z++) {
		add_residual(&work->zones[z], norms.residual);
		add_error(&work->zones[z], work->solver->interior_error, norms.error);
		if (work->solver->surface_integral)
			norms.surface += surface_integral(&work->zones[z]);
	}
	MPI_Allreduce(MPI_IN_PLACE, norms.residual, VARIABLES, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	MPI_Allreduce(MPI_IN_PLACE, norms.error, VARIABLES, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	MPI_Allreduce(MPI_IN_PLACE, &norms.surface, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	return norms;
}

bool run(const struct solver *solver, const struct partition *partition, int rank, struct result *result)
{
	struct work work = { .solver = solver };
	bool made = make_zones(&work, result->problem, partition, rank) && make_scratch(&work);
	if (made) {
		work.exchange = make_exchange(partition, work.zones, work.count, rank);
		made = work.exchange != NULL;
	}
	if (!made) {
		free_work(&work);
		return false;
	}
	for (int z = 0; z < work.count; z++)
		compute_forcing(&work.zones[z]);

	/* One step that does not count touches all code and memory. */
	set_back(&work);
	step(&work);
	set_back(&work);

	const double start = start_clock();
	for (int i = 1; i <= result->iterations; i++) {
		if (rank == 0)
			print_step(i);
		step(&work);
	}
	result->seconds = elapsed(start);
	result->mops = operations_per_step(solver, partition) * result->iterations / result->seconds * 1e-6;

	const struct norms norms = sum_norms(&work);
	result->check_count = make_checks(&norms, &result->problem->reference, solver->surface_integral, result->checks);
	result->verdict = result->iterations == result->problem->iterations ? judge(result->checks, result->check_count)
									    : NOT_PERFORMED;
	free_work(&work);
	return true;
}
