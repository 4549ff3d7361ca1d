/* The right-hand side of the semi-discrete equations, the same for all solvers. */
#ifndef NPBMZ_RHS_H
#define NPBMZ_RHS_H

#include "field.h"

/*
 * Functions that are "shared out" must be called by all threads of a parallel
 * region; the threads divide the work and wait for one another at its end.
 */

/* Derives velocities and the like from the state, at all points. Shared out. */
void derive(struct zone *zone);

/*
 * Weights of the fourth difference at point at of n, from two points before it
 * to two after it, equation (5). Next to a face there are none for points that
 * would be outside, or on the face and next to the point.
 */
void fourth_difference(int at, int n, double weight[5]);

/*
 * rhs = scale (R(U) + H) at the interior points, equations (4) and (5). Needs
 * derive() since the state last changed. Shared out.
 */
void compute_rhs(struct zone *zone, double scale);

/* Sets H such that the exact solution is steady, equation (6). The state is lost. */
void compute_forcing(struct zone *zone);

#endif
