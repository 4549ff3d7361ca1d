#include "initial.h"

#include <string.h>

void exact_solution(const double at[DIRECTIONS], double state[VARIABLES])
{
	for (int m = 0; m < VARIABLES; m++) {
		const double *c = model.exact[m];
		double sum = c[0];
		for (int d = X; d <= Z; d++)
			sum += at[d] * (c[1 + d] + at[d] * (c[4 + d] + at[d] * (c[7 + d] + at[d] * c[10 + d])));
		state[m] = sum;
	}
}

/*
 * Transfinite interpolation, equation (7), between the planes of the unit cube,
 * where the exact solution is taken.
 */
static void interpolate(const double place[DIRECTIONS], double state[VARIABLES])
{
	double between[DIRECTIONS][VARIABLES];
	for (int d = X; d <= Z; d++) {
		double low[VARIABLES], high[VARIABLES], at[DIRECTIONS];
		memcpy(at, place, sizeof at);
		at[d] = 0.0;
		exact_solution(at, low);
		at[d] = 1.0;
		exact_solution(at, high);
		for (int m = 0; m < VARIABLES; m++)
			between[d][m] = (1.0 - place[d]) * low[m] + place[d] * high[m];
	}
	for (int m = 0; m < VARIABLES; m++) {
		double x = between[X][m], y = between[Y][m], z = between[Z][m];
		state[m] = x + y + z - x * y - x * z - y * z + x * y * z;
	}
}

/* The initial state at a point. East and north faces are those of the unit cube. */
static void initial_state(const struct zone *zone, const int point[DIRECTIONS], const double place[DIRECTIONS],
			  double state[VARIABLES])
{
	bool low[DIRECTIONS], high[DIRECTIONS];
	for (int d = X; d <= Z; d++) {
		low[d] = point[d] == 0;
		high[d] = point[d] == zone->n[d] - 1;
	}
	double at[DIRECTIONS] = { place[X], place[Y], place[Z] };
	if (low[Z] || high[Z] || low[Y]) {
		exact_solution(at, state);
	} else if (high[Y]) {
		at[Y] = 1.0;
		exact_solution(at, state);
	} else if (low[X] || high[X]) {
		at[X] = high[X] ? 1.0 : 0.0;
		exact_solution(at, state);
	} else {
		interpolate(place, state);
	}
}

/* The state of a point, given by its indices and its coordinates. */
typedef void state_function(const struct zone *zone, const int point[DIRECTIONS], const double place[DIRECTIONS],
			    double state[VARIABLES]);

static void set_points(struct zone *zone, state_function *function)
{
	const int nx = zone->n[X];
#pragma omp parallel for collapse(2) schedule(static)
	for (int k = 0; k < zone->n[Z]; k++) {
		for (int j = 0; j < zone->n[Y]; j++) {
			double *u = zone->state + row(zone, VARIABLES, j, k);
			for (int i = 0; i < nx; i++) {
				const int point[] = { i, j, k };
				const double place[] = { i * zone->spacing[X], j * zone->spacing[Y], k * zone->spacing[Z] };
				double state[VARIABLES];
				function(zone, point, place, state);
				for (int m = 0; m < VARIABLES; m++)
					u[i + m * nx] = state[m];
			}
		}
	}
}

void set_initial(struct zone *zone)
{
	set_points(zone, initial_state);
}

static void exact_state(const struct zone *zone, const int point[DIRECTIONS], const double place[DIRECTIONS],
			double state[VARIABLES])
{
	(void)zone;
	(void)point;
	exact_solution(place, state);
}

void set_exact(struct zone *zone)
{
	set_points(zone, exact_state);
}
