/* What rank 0 prints. */
#ifndef NPBMZ_REPORT_H
#define NPBMZ_REPORT_H

#include "problem.h"
#include "verify.h"

struct result {
	const char *benchmark;
	const struct problem *problem;
	int iterations;
	int ranks, threads; /* threads of all ranks */
	double imbalance;   /* of points per rank: largest to mean */
	double seconds;
	double mops;        /* millions of the published operations per second */
	struct check checks[MOST_CHECKS];
	int check_count;
	enum verdict verdict;
};

/* Before the run: what will be run. */
void print_heading(const struct result *result);

/* While it runs: the first time step and every twentieth. */
void print_step(int step);

/* After it: norms, verdict and figures. */
void print_result(const struct result *result);

/* The same as one line of JSON. Numbers that JSON has no words for are null. */
void print_json(const struct result *result);

#endif
