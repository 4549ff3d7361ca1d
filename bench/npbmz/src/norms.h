/* What a run is verified by. */
#ifndef NPBMZ_NORMS_H
#define NPBMZ_NORMS_H

#include "field.h"
#include "problem.h"

/*
 * Adds a zone's root mean squares, equation (14), of R(U) + H, which is left in
 * rhs, and equation (15), of the difference from the exact solution: at all
 * points, or at the interior ones only.
 */
void add_residual(struct zone *zone, double residual[VARIABLES]);
void add_error(const struct zone *zone, bool interior_only, double error[VARIABLES]);

/* A zone's integral of the pressure over a box inside it, equation (16). */
double surface_integral(const struct zone *zone);

#endif
