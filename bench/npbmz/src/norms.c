#include "norms.h"

#include <math.h>

#include "initial.h"
#include "rhs.h"

static double interior_points(const struct zone *zone)
{
	return (double)(zone->n[X] - 2) * (zone->n[Y] - 2) * (zone->n[Z] - 2);
}

void add_residual(struct zone *zone, double residual[VARIABLES])
{
#pragma omp parallel
	{
		derive(zone);
		compute_rhs(zone, 1.0);
	}
	double sum[VARIABLES] = { 0.0 };
	for (int k = 1; k < zone->n[Z] - 1; k++) {
		for (int j = 1; j < zone->n[Y] - 1; j++) {
			const double *r = zone->rhs + row(zone, VARIABLES, j, k);
			for (int m = 0; m < VARIABLES; m++) {
				for (int i = 1; i < zone->n[X] - 1; i++)
					sum[m] += r[i + m * zone->n[X]] * r[i + m * zone->n[X]];
			}
		}
	}
	for (int m = 0; m < VARIABLES; m++)
		residual[m] += sqrt(sum[m] / interior_points(zone));
}

void add_error(const struct zone *zone, bool interior_only, double error[VARIABLES])
{
	const int margin = interior_only ? 1 : 0;
	double sum[VARIABLES] = { 0.0 };
	for (int k = margin; k < zone->n[Z] - margin; k++) {
		for (int j = margin; j < zone->n[Y] - margin; j++) {
			const double *u = zone->state + row(zone, VARIABLES, j, k);
			for (int i = margin; i < zone->n[X] - margin; i++) {
				const double at[] = { i * zone->spacing[X], j * zone->spacing[Y], k * zone->spacing[Z] };
				double exact[VARIABLES];
				exact_solution(at, exact);
				for (int m = 0; m < VARIABLES; m++) {
					double difference = u[i + m * zone->n[X]] - exact[m];
					sum[m] += difference * difference;
				}
			}
		}
	}
	for (int m = 0; m < VARIABLES; m++)
		error[m] += sqrt(sum[m] / interior_points(zone));
}

static double pressure(const struct zone *zone, int i, int j, int k)
{
	const int nx = zone->n[X];
	const double *u = zone->state + row(zone, VARIABLES, j, k) + i;
	double mx = u[MOMENTUM_X * nx], my = u[MOMENTUM_Y * nx], mz = u[MOMENTUM_Z * nx];
	return model.gamma_minus_1 * (u[ENERGY * nx] - 0.5 * (mx * mx + my * my + mz * mz) / u[0]);
}

/* Trapezoidal rule for the pressure over one face of the box from low to high. */
static double face_integral(const struct zone *zone, const int low[DIRECTIONS],
			    const int high[DIRECTIONS], int normal, int plane)
{
	const int a = (normal + 1) % DIRECTIONS, b = (normal + 2) % DIRECTIONS;
	int at[DIRECTIONS];
	double sum = 0.0;
	at[normal] = plane;
	for (at[b] = low[b]; at[b] <= high[b]; at[b]++) {
		for (at[a] = low[a]; at[a] <= high[a]; at[a]++) {
			double weight = (at[a] == low[a] || at[a] == high[a] ? 0.5 : 1.0) *
					(at[b] == low[b] || at[b] == high[b] ? 0.5 : 1.0);
			sum += weight * pressure(zone, at[X], at[Y], at[Z]);
		}
	}
	return sum * zone->spacing[a] * zone->spacing[b];
}

double surface_integral(const struct zone *zone)
{
	const int low[] = { 1, 1, 2 };
	const int high[] = { zone->n[X] - 2, zone->n[Y] - 3, zone->n[Z] - 2 };
	double sum = 0.0;
	for (int d = X; d <= Z; d++)
		sum += face_integral(zone, low, high, d, low[d]) + face_integral(zone, low, high, d, high[d]);
	return sum;
}
