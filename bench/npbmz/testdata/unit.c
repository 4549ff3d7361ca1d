/*
 * Tests of the parts below the solvers: zones and their distribution, the
 * right-hand side, the verdict. Exit code 1 if anything is wrong.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "initial.h"
#include "rhs.h"
#include "verify.h"
#include "zones.h"

static int failures;

#define EXPECT(condition, ...)                                    \
	do {                                                      \
		if (!(condition)) {                               \
			failures++;                               \
			printf("line %d: %s: ", __LINE__, #condition); \
			printf(__VA_ARGS__);                      \
			printf("\n");                             \
		}                                                 \
	} while (0)

static void test_sizes(const struct partition *p, const struct problem *problem, const char *name)
{
	const int reach = 5; /* of the fourth difference */
	for (int d = X; d <= Y; d++) {
		int sum = 0, least = p->size[d][0], most = 0;
		for (int i = 0; i < p->zones[d]; i++) {
			int size = p->size[d][i];
			sum += size;
			least = size < least ? size : least;
			most = size > most ? size : most;
		}
		EXPECT(sum == problem->size[d], "%s direction %d: %d points", name, d, sum);
		EXPECT(least >= reach, "%s direction %d: %d points in a zone", name, d, least);
		double ratio = (double)most / least;
		EXPECT(fabs(ratio - problem->ratio) < 0.2 * problem->ratio, "%s direction %d: ratio %g", name, d, ratio);
	}
	const enum side opposite[] = { [WEST] = EAST, [EAST] = WEST, [SOUTH] = NORTH, [NORTH] = SOUTH };
	for (int z = 0; z < p->count; z++) {
		for (int s = WEST; s < SIDES; s++) {
			int other = zone_neighbour(p, z, (enum side)s), along = s == WEST || s == EAST ? Y : X;
			EXPECT(zone_neighbour(p, other, opposite[s]) == z, "%s zone %d side %d", name, z, s);
			EXPECT(zone_size(p, other, along) == zone_size(p, z, along), "%s zone %d side %d", name, z, s);
		}
	}
}

static void test_owners(const struct partition *p, const char *name)
{
	long total = 0, largest = 0, *load = calloc((size_t)p->ranks, sizeof *load);
	if (!load)
		abort();
	for (int z = 0; z < p->count; z++) {
		long size = zone_points(p, z);
		largest = size > largest ? size : largest;
		total += size;
		EXPECT(p->owner[z] >= 0 && p->owner[z] < p->ranks, "%s zone %d on rank %d of %d", name, z, p->owner[z], p->ranks);
		load[p->owner[z]] += size;
	}
	double mean = (double)total / p->ranks, most = 0.0;
	for (int r = 0; r < p->ranks; r++) {
		EXPECT(load[r] > 0, "%s rank %d of %d has nothing", name, r, p->ranks);
		most = (double)load[r] > most ? (double)load[r] : most;
	}
	EXPECT(most <= mean + (double)largest, "%s with %d ranks: %g on one, mean %g", name, p->ranks, most, mean);
	EXPECT(fabs(imbalance(p) - most / mean) < 1e-12, "%s with %d ranks: %g", name, p->ranks, imbalance(p));
	free(load);
}

static void test_partitions(void)
{
	for (int b = BT_MZ; b <= LU_MZ; b++) {
		for (const char *class = CLASSES; *class; class++) {
			const struct problem *problem = find_problem((enum benchmark)b, *class);
			char name[32];
			snprintf(name, sizeof name, "benchmark %d class %c", b, *class);
			EXPECT(problem && problem->class == *class, "%s", name);
			for (int ranks = 1; ranks <= problem->zones[X] * problem->zones[Y]; ranks++) {
				struct partition p;
				if (!make_partition(&p, problem, ranks))
					abort();
				if (ranks == 1)
					test_sizes(&p, problem, name);
				test_owners(&p, name);
				free_partition(&p);
			}
		}
	}
	EXPECT(!find_problem(BT_MZ, 'X') && !find_problem(BT_MZ, '\0'), "there are no such classes");
}

/* The largest right-hand side at any interior point. */
static double largest_rhs(struct zone *zone)
{
	derive(zone);
	compute_rhs(zone, 1.0);
	double largest = 0.0;
	for (size_t i = 0; i < VARIABLES * points(zone); i++)
		largest = fmax(largest, fabs(zone->rhs[i]));
	return largest;
}

/* The forcing makes the exact solution steady, and only that, also in zones where all points are next to faces. */
static void test_forcing(void)
{
	const int sizes[][DIRECTIONS] = { { 5, 5, 5 }, { 6, 5, 7 }, { 12, 9, 6 } };
	for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
		struct zone zone = { .dt = 0.01 };
		for (int d = X; d <= Z; d++) {
			zone.n[d] = sizes[s][d];
			zone.spacing[d] = 0.1;
		}
		if (!make_fields(&zone))
			abort();
		compute_forcing(&zone);
		set_exact(&zone);
		double steady = largest_rhs(&zone);
		EXPECT(steady < 1e-9, "size %zu: %g", s, steady);
		set_initial(&zone);
		double moving = largest_rhs(&zone);
		EXPECT(moving > 1.0, "size %zu: %g", s, moving);
		free_fields(&zone);
	}
}

static void test_verdict(void)
{
	const struct norms reference = find_problem(LU_MZ, 'S')->reference;
	const struct {
		double factor;
		enum verdict verdict;
	} cases[] = {
		{ 1.0, SUCCESSFUL },          { 1.0 + 0.99e-8, SUCCESSFUL },   { 1.0 - 0.99e-8, SUCCESSFUL },
		{ 1.0 + 1.01e-8, UNSUCCESSFUL }, { 1.0 - 1.01e-8, UNSUCCESSFUL }, { 0.0, UNSUCCESSFUL },
		{ -1.0, UNSUCCESSFUL },       { NAN, UNSUCCESSFUL },           { INFINITY, UNSUCCESSFUL },
	};
	for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
		for (int which = 0; which < MOST_CHECKS; which++) {
			struct norms computed = reference;
			if (which < VARIABLES)
				computed.residual[which] *= cases[c].factor;
			else if (which < 2 * VARIABLES)
				computed.error[which - VARIABLES] *= cases[c].factor;
			else
				computed.surface *= cases[c].factor;
			struct check checks[MOST_CHECKS];
			int count = make_checks(&computed, &reference, true, checks);
			EXPECT(count == MOST_CHECKS, "%d checks", count);
			EXPECT(judge(checks, count) == cases[c].verdict, "norm %d times %g", which, cases[c].factor);
		}
	}
}

int main(void)
{
	test_partitions();
	test_forcing();
	test_verdict();
	return failures ? 1 : 0;
}
