/*
 * The fields of one zone. A row is all points of one (j, k); for every row the
 * values of one variable stand side by side in i, and the variables follow one
 * another: value m of point (i, j, k) of a field with M values per point is at
 * ((k ny + j) M + m) nx + i. Loops over i have unit stride, and what one point
 * needs of all variables is close by.
 */
#ifndef NPBMZ_FIELD_H
#define NPBMZ_FIELD_H

#include <stdbool.h>
#include <stddef.h>

#include "model.h"

/* What is derived from the state before each step, see derive(). */
enum {
	INVERSE_DENSITY,
	VELOCITY_X,
	VELOCITY_Y,
	VELOCITY_Z,
	KINETIC,         /* half the square of the velocity */
	SPECIFIC_ENERGY, /* E / rho */
	DERIVED
};

struct zone {
	int id;
	int n[DIRECTIONS];
	double dt;
	double spacing[DIRECTIONS]; /* h */
	double *state;   /* U */
	double *rhs;     /* right-hand side, then the change of U; zero on faces */
	double *forcing; /* H, equation (6); zero on faces */
	double *derived;
};

/* Allocates the fields of a zone whose sizes are set, all zero. False if there is no memory. */
bool make_fields(struct zone *zone);
void free_fields(struct zone *zone);

/*
 * Coefficients of the differences in one direction, times the time step: of
 * central first differences (1/(2h)), of second differences of velocities
 * (c3 c4/h^2) and of the state (d/h^2). With dt = 1 those of equation (4).
 */
struct coefficients {
	double convection, viscous, diffusion;
};

static inline struct coefficients make_coefficients(const struct zone *zone, int direction, double dt)
{
	const double h = zone->spacing[direction];
	return (struct coefficients){
		.convection = dt / (2.0 * h),
		.viscous = dt * model.viscosity / (h * h),
		.diffusion = dt * model.diffusion[direction] / (h * h),
	};
}

/* Points of a zone. */
static inline size_t points(const struct zone *zone)
{
	return (size_t)zone->n[X] * (size_t)zone->n[Y] * (size_t)zone->n[Z];
}

/* Where row (j, k) starts in a field with that many values per point. */
static inline size_t row(const struct zone *zone, int values, int j, int k)
{
	return ((size_t)k * (size_t)zone->n[Y] + (size_t)j) * (size_t)values * (size_t)zone->n[X];
}

/* From a point to the next in a direction, in a field with that many values per point. */
static inline ptrdiff_t stride(const struct zone *zone, int values, int direction)
{
	ptrdiff_t rows = (ptrdiff_t)values * zone->n[X];
	return direction == X ? 1 : direction == Y ? rows : rows * zone->n[Y];
}

#endif
