#include "report.h"

#include <math.h>
#include <stdio.h>

static const char *const verdicts[] = {
	[SUCCESSFUL] = "SUCCESSFUL",
	[UNSUCCESSFUL] = "UNSUCCESSFUL",
	[NOT_PERFORMED] = "not performed",
};

void print_heading(const struct result *result)
{
	const struct problem *p = result->problem;
	printf("\n NAS Parallel Benchmarks, Multi-Zone: %s in C with MPI and OpenMP\n\n", result->benchmark);
	printf(" Class          %c\n", p->class);
	printf(" Size           %d x %d x %d\n", p->size[X], p->size[Y], p->size[Z]);
	printf(" Zones          %d x %d\n", p->zones[X], p->zones[Y]);
	printf(" Iterations     %d\n", result->iterations);
	printf(" Time step size %g\n", p->dt);
	printf(" Processes      %d, the largest load is %.3f of the mean\n", result->ranks, result->imbalance);
	printf(" Threads        %d\n\n", result->threads);
	fflush(stdout);
}

void print_step(int step)
{
	if (step != 1 && step % 20 != 0)
		return;
	printf(" Time step %4d\n", step);
	fflush(stdout);
}

static void print_checks(const struct result *result)
{
	bool compare = result->verdict != NOT_PERFORMED;
	printf("\n %-18s %s", "Norm", "Computed");
	if (compare)
		printf("%14s %-22s %s", "", "Reference", "Relative error");
	printf("\n");
	for (int i = 0; i < result->check_count; i++) {
		const struct check *c = &result->checks[i];
		printf(" %-16s", c->name);
		printf(c->variable ? " %d" : "  ", c->variable);
		printf(" %21.14e", c->computed);
		if (compare)
			printf(" %21.14e  %.3e%s", c->reference, c->error, c->error <= tolerance ? "" : "  FAILED");
		printf("\n");
	}
}

void print_result(const struct result *result)
{
	const struct problem *p = result->problem;
	print_checks(result);
	printf("\n Verification %s", verdicts[result->verdict]);
	if (result->verdict == NOT_PERFORMED)
		printf(": class %c has %d iterations", p->class, p->iterations);
	else
		printf(", tolerance %g", tolerance);
	printf("\n\n %s benchmark completed\n", result->benchmark);
	printf(" Class           = %c\n", p->class);
	printf(" Size            = %d x %d x %d\n", p->size[X], p->size[Y], p->size[Z]);
	printf(" Iterations      = %d\n", result->iterations);
	printf(" Time in seconds = %.3f\n", result->seconds);
	printf(" Total processes = %d\n", result->ranks);
	printf(" Total threads   = %d\n", result->threads);
	printf(" Mop/s total     = %.2f\n", result->mops);
	printf(" Mop/s/thread    = %.2f\n", result->mops / result->threads);
	printf(" Verification    = %s\n\n", verdicts[result->verdict]);
	fflush(stdout);
}

static void print_number(const char *key, double value)
{
	if (isfinite(value))
		printf(",\"%s\":%.17g", key, value);
	else
		printf(",\"%s\":null", key);
}

void print_json(const struct result *result)
{
	const struct problem *p = result->problem;
	printf("{\"benchmark\":\"%s\",\"class\":\"%c\",\"size\":[%d,%d,%d],\"zones\":[%d,%d]", result->benchmark, p->class,
	       p->size[X], p->size[Y], p->size[Z], p->zones[X], p->zones[Y]);
	printf(",\"iterations\":%d,\"ranks\":%d,\"threads\":%d", result->iterations, result->ranks, result->threads);
	print_number("imbalance", result->imbalance);
	print_number("seconds", result->seconds);
	print_number("mops", result->mops);
	printf(",\"norms\":[");
	for (int i = 0; i < result->check_count; i++) {
		const struct check *c = &result->checks[i];
		printf("%s{\"name\":\"%s\",\"variable\":%d", i ? "," : "", c->name, c->variable);
		print_number("computed", c->computed);
		if (result->verdict != NOT_PERFORMED) {
			print_number("reference", c->reference);
			print_number("error", c->error);
		}
		printf("}");
	}
	printf("],\"verification\":\"%s\"}\n", verdicts[result->verdict]);
	fflush(stdout);
}
