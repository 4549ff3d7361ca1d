#include "verify.h"

#include <math.h>

const double tolerance = 1e-8;

static struct check make_check(const char *name, int variable, double computed, double reference)
{
	return (struct check){
		.name = name,
		.variable = variable,
		.computed = computed,
		.reference = reference,
		.error = fabs((computed - reference) / reference),
	};
}

int make_checks(const struct norms *computed, const struct norms *reference, bool surface_integral,
		struct check checks[MOST_CHECKS])
{
	int count = 0;
	for (int m = 0; m < VARIABLES; m++)
		checks[count++] = make_check("residual", m + 1, computed->residual[m], reference->residual[m]);
	for (int m = 0; m < VARIABLES; m++)
		checks[count++] = make_check("error", m + 1, computed->error[m], reference->error[m]);
	if (surface_integral)
		checks[count++] = make_check("surface integral", 0, computed->surface, reference->surface);
	return count;
}

enum verdict judge(const struct check *checks, int count)
{
	for (int i = 0; i < count; i++) {
		if (!(checks[i].error <= tolerance))
			return UNSUCCESSFUL;
	}
	return SUCCESSFUL;
}
