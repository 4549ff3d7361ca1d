/*
 * LU-MZ: symmetric successive over-relaxation, equation (12). Blocks are never
 * formed: what the sweeps need is their product with a vector, and a diagonal
 * block is triangular.
 */
#include "rhs.h"
#include "solver.h"

static const double relaxation = 1.2;

/* Scratch rows: what a row has to be reduced by or solved for, and the pivots of its diagonal blocks. */
enum { PIVOT_X, PIVOT_Y, PIVOT_Z, PIVOT_ENERGY, PIVOTS };

static size_t scratch(const int n[DIRECTIONS])
{
	return (size_t)n[X] * (VARIABLES + PIVOTS);
}

/*
 * The product of a neighbour's block with its vector v, equation (13): sign
 * convection F' v - viscous N' v - diffusion v, where sign is -1 for the
 * neighbour below and 1 for the one above. q and v are the neighbour's, nx apart.
 */
static inline void neighbour_product(struct coefficients c, double sign, int direction, const double *restrict q,
				     const double *restrict v, int nx, double product[VARIABLES])
{
	const double inverse = q[INVERSE_DENSITY * nx], kinetic = q[KINETIC * nx], energy = q[SPECIFIC_ENERGY * nx];
	const double flux = sign * c.convection, normal = q[(VELOCITY_X + direction) * nx];
	double work = 0.0, shear_work = 0.0, relative[DIRECTIONS];
	for (int d = X; d <= Z; d++) {
		double velocity = q[(VELOCITY_X + d) * nx];
		work += velocity * v[(MOMENTUM_X + d) * nx];
		relative[d] = v[(MOMENTUM_X + d) * nx] - velocity * v[0];
		shear_work += velocity * relative[d];
	}
	const double pressure = model.gamma_minus_1 * (kinetic * v[0] - work + v[ENERGY * nx]);
	const double enthalpy = model.gamma * energy - model.gamma_minus_1 * kinetic;
	const double mass = v[(MOMENTUM_X + direction) * nx], viscous = c.viscous * inverse;
	product[DENSITY] = flux * mass - c.diffusion * v[0];
	for (int d = X; d <= Z; d++) {
		double shear = d == direction ? 4.0 / 3.0 : 1.0;
		product[MOMENTUM_X + d] = flux * (q[(VELOCITY_X + d) * nx] * mass + normal * relative[d] +
						  (d == direction ? pressure : 0.0)) -
					  viscous * shear * relative[d] - c.diffusion * v[(MOMENTUM_X + d) * nx];
	}
	product[ENERGY] = flux * (relative[direction] * enthalpy + normal * (v[ENERGY * nx] + pressure)) -
			  viscous * ((1.0 - model.conduction) * shear_work + normal * relative[direction] / 3.0 +
				     model.conduction * (v[ENERGY * nx] - energy * v[0])) -
			  c.diffusion * v[ENERGY * nx];
}

/* Coefficients of the diagonal blocks D of equation (13). */
struct diagonal {
	double one;                /* 1 + 2 dt sum of d/h^2 */
	double viscous;            /* 2 dt c3 c4 sum of 1/h^2 */
	double normal[DIRECTIONS]; /* a third of each direction's part of viscous */
};

static struct diagonal make_diagonal(const struct coefficients c[DIRECTIONS])
{
	struct diagonal diagonal = { .one = 1.0 };
	for (int d = X; d <= Z; d++) {
		diagonal.one += 2.0 * c[d].diffusion;
		diagonal.viscous += 2.0 * c[d].viscous;
		diagonal.normal[d] = 2.0 / 3.0 * c[d].viscous;
	}
	return diagonal;
}

/* Inverts what is on the diagonals of D along a row. */
static void compute_pivots(struct diagonal d, int nx, const double *restrict q, double *restrict pivots)
{
#pragma omp simd
	for (int i = 1; i < nx - 1; i++) {
		double inverse = q[i + INVERSE_DENSITY * nx];
		for (int m = X; m <= Z; m++)
			pivots[i + m * nx] = 1.0 / (d.one + (d.viscous + d.normal[m]) * inverse);
		pivots[i + PIVOT_ENERGY * nx] = 1.0 / (d.one + model.conduction * d.viscous * inverse);
	}
}

/*
 * Solves D x = v at a point. D is lower triangular in the density, the
 * momenta relative to it, and the energy relative to both.
 */
static inline void solve_diagonal(struct diagonal d, double inverse_one, const double *restrict q,
				  const double *restrict pivots, int nx, double v[VARIABLES])
{
	const double inverse = q[INVERSE_DENSITY * nx], density = v[DENSITY], energy = q[SPECIFIC_ENERGY * nx];
	double work = 0.0;
	v[DENSITY] = density * inverse_one;
	for (int m = X; m <= Z; m++) {
		double velocity = q[(VELOCITY_X + m) * nx];
		double relative = (v[MOMENTUM_X + m] - velocity * density) * pivots[m * nx];
		work += ((1.0 - model.conduction) * d.viscous + d.normal[m]) * velocity * relative;
		v[MOMENTUM_X + m] = relative + velocity * v[DENSITY];
	}
	v[ENERGY] = (v[ENERGY] - energy * density - inverse * work) * pivots[PIVOT_ENERGY * nx] + energy * v[DENSITY];
}

/* What all rows of a sweep share. */
struct sweep {
	struct coefficients c[DIRECTIONS];
	struct diagonal diagonal;
	double sign; /* of the flux: -1 where neighbours below come first, 1 where those above do */
};

/*
 * What the neighbours of row (j, k) in y and z that the sweep has passed
 * contribute to it, times the relaxation factor.
 */
static void reduce_row(const struct sweep *s, const struct zone *zone, int j, int k, double *restrict sum)
{
	const int nx = zone->n[X], back = s->sign < 0.0 ? -1 : 1;
	const double *qy = zone->derived + row(zone, DERIVED, j + back, k);
	const double *qz = zone->derived + row(zone, DERIVED, j, k + back);
	const double *vy = zone->rhs + row(zone, VARIABLES, j + back, k);
	const double *vz = zone->rhs + row(zone, VARIABLES, j, k + back);
#pragma omp simd
	for (int i = 1; i < nx - 1; i++) {
		double y[VARIABLES], z[VARIABLES];
		neighbour_product(s->c[Y], s->sign, Y, qy + i, vy + i, nx, y);
		neighbour_product(s->c[Z], s->sign, Z, qz + i, vz + i, nx, z);
		for (int m = 0; m < VARIABLES; m++)
			sum[i + m * nx] = relaxation * (y[m] + z[m]);
	}
}

/* One row of the lower sweep: (D + omega L) v = rhs. */
static void lower_row(const struct sweep *s, struct zone *zone, int j, int k, double *restrict memory)
{
	const int nx = zone->n[X];
	const double *restrict q = zone->derived + row(zone, DERIVED, j, k);
	double *restrict v = zone->rhs + row(zone, VARIABLES, j, k);
	double *restrict sum = memory, *restrict pivots = memory + VARIABLES * nx;
	const double inverse_one = 1.0 / s->diagonal.one;
	reduce_row(s, zone, j, k, sum);
	compute_pivots(s->diagonal, nx, q, pivots);
	for (int i = 1; i < nx - 1; i++) {
		double x[VARIABLES];
		neighbour_product(s->c[X], s->sign, X, q + i - 1, v + i - 1, nx, x);
		for (int m = 0; m < VARIABLES; m++)
			x[m] = v[i + m * nx] - sum[i + m * nx] - relaxation * x[m];
		solve_diagonal(s->diagonal, inverse_one, q + i, pivots + i, nx, x);
		for (int m = 0; m < VARIABLES; m++)
			v[i + m * nx] = x[m];
	}
}

/* One row of the upper sweep: (D + omega U) dU = D v, and the state takes its step. */
static void upper_row(const struct sweep *s, struct zone *zone, int j, int k, double *restrict memory)
{
	const int nx = zone->n[X];
	const double step = 1.0 / (relaxation * (2.0 - relaxation));
	const double *restrict q = zone->derived + row(zone, DERIVED, j, k);
	double *restrict v = zone->rhs + row(zone, VARIABLES, j, k);
	double *restrict u = zone->state + row(zone, VARIABLES, j, k);
	double *restrict sum = memory, *restrict pivots = memory + VARIABLES * nx;
	const double inverse_one = 1.0 / s->diagonal.one;
	reduce_row(s, zone, j, k, sum);
	compute_pivots(s->diagonal, nx, q, pivots);
	for (int i = nx - 2; i > 0; i--) {
		double x[VARIABLES];
		neighbour_product(s->c[X], s->sign, X, q + i + 1, v + i + 1, nx, x);
		for (int m = 0; m < VARIABLES; m++)
			x[m] = sum[i + m * nx] + relaxation * x[m];
		solve_diagonal(s->diagonal, inverse_one, q + i, pivots + i, nx, x);
		for (int m = 0; m < VARIABLES; m++)
			v[i + m * nx] -= x[m];
	}
	for (int m = 0; m < VARIABLES; m++) {
		for (int i = 1; i < nx - 1; i++)
			u[i + m * nx] += step * v[i + m * nx];
	}
}

/* A right-hand side ready for the next sweeps. */
static void begin(struct zone *zone)
{
	derive(zone);
	compute_rhs(zone, zone->dt);
}

/*
 * One step, equation (12). Its right-hand side is from the end of the step
 * before. Rows with the same j + k do not depend on one another; the threads
 * share out each such diagonal.
 */
static void advance(struct zone *zone, double *memory)
{
	const int last_j = zone->n[Y] - 2, last_k = zone->n[Z] - 2;
	struct sweep lower = { .sign = -1.0 };
	for (int d = X; d <= Z; d++)
		lower.c[d] = make_coefficients(zone, d, zone->dt);
	lower.diagonal = make_diagonal(lower.c);
	struct sweep upper = lower;
	upper.sign = 1.0;

	for (int sum = 2; sum <= last_j + last_k; sum++) {
		const int first = sum > last_j + 1 ? sum - last_j : 1, last = sum - 1 < last_k ? sum - 1 : last_k;
#pragma omp for schedule(static)
		for (int k = first; k <= last; k++)
			lower_row(&lower, zone, sum - k, k, memory);
	}
	for (int sum = last_j + last_k; sum >= 2; sum--) {
		const int first = sum > last_j + 1 ? sum - last_j : 1, last = sum - 1 < last_k ? sum - 1 : last_k;
#pragma omp for schedule(static)
		for (int k = first; k <= last; k++)
			upper_row(&upper, zone, sum - k, k, memory);
	}
	begin(zone);
}

const struct solver solver = {
	.benchmark = LU_MZ,
	.name = "LU-MZ",
	.mesh = OWN_MESH,
	.interior_error = true,
	.surface_integral = true,
	.operations = { 1984.77, -10923.3, 27770.9, -144010.0 },
	.scratch = scratch,
	.begin = begin,
	.advance = advance,
};
