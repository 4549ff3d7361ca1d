/* The verdict on a run. */
#ifndef NPBMZ_VERIFY_H
#define NPBMZ_VERIFY_H

#include <stdbool.h>

#include "problem.h"

/* Largest relative error that a norm may have. */
extern const double tolerance;

enum verdict { SUCCESSFUL, UNSUCCESSFUL, NOT_PERFORMED };

/* A norm next to what was published. */
struct check {
	const char *name; /* "residual", "error", "surface integral" */
	int variable;     /* from 1, or 0 */
	double computed, reference;
	double error;     /* relative */
};

enum { MOST_CHECKS = 2 * VARIABLES + 1 };

/* Lists the norms of a run with their relative errors; returns how many there are. */
int make_checks(const struct norms *computed, const struct norms *reference, bool surface_integral,
		struct check checks[MOST_CHECKS]);

/* SUCCESSFUL if every error is within the tolerance: one that is not a number is not. */
enum verdict judge(const struct check *checks, int count);

#endif
