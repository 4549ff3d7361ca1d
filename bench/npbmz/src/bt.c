/*
 * BT-MZ: approximate factorisation with block-tridiagonal systems,
 * equation (8).
 */
#include "lines.h"
#include "rhs.h"
#include "solver.h"

/*
 * Derived values of a point that its Jacobians are made of. Velocities and
 * momenta of a line are turned so that the one along it comes first: with that
 * the three directions are one case.
 */
enum { R_INVERSE, R_ALONG, R_ACROSS_1, R_ACROSS_2, R_KINETIC, R_ENERGY, R_VALUES };

enum { BLOCK = VARIABLES * VARIABLES };

/* Strides from one point to the next in the buffers of a batch. */
enum { DERIVED_WIDTH = R_VALUES * LANES, RHS_WIDTH = VARIABLES * LANES, BLOCK_WIDTH = BLOCK * LANES };

/* A batch of lines: derived values, right-hand sides, and the blocks right of the diagonal. */
struct buffers {
	double *restrict derived;
	double *restrict rhs;
	double *restrict upper;
};

static size_t scratch(const int n[DIRECTIONS])
{
	return longest_line(n) * (DERIVED_WIDTH + RHS_WIDTH + BLOCK_WIDTH);
}

/*
 * An off-diagonal block of equation (9): flux F' - viscous N' -
 * diffusion I, from the derived values of its point; left of the diagonal flux
 * is negative. Entries that are always zero are not set.
 */
static inline void off_diagonal(double flux, double viscous, double diffusion, const double *restrict q, double a[5][5])
{
	const double c1 = model.gamma, c2 = model.gamma_minus_1, k = model.conduction;
	const double inverse = q[R_INVERSE * LANES], kinetic = q[R_KINETIC * LANES], energy = q[R_ENERGY * LANES];
	const double n = q[R_ALONG * LANES], s = q[R_ACROSS_1 * LANES], t = q[R_ACROSS_2 * LANES];
	const double v = viscous * inverse, enthalpy = c1 * energy - c2 * kinetic, fn = flux * n;

	a[0][0] = -diffusion;
	a[0][1] = flux;

	a[1][0] = flux * (c2 * kinetic - n * n) + 4.0 / 3.0 * v * n;
	a[1][1] = (2.0 - c2) * fn - 4.0 / 3.0 * v - diffusion;
	a[1][2] = -c2 * flux * s;
	a[1][3] = -c2 * flux * t;
	a[1][4] = c2 * flux;

	a[2][0] = (v - fn) * s;
	a[2][1] = flux * s;
	a[2][2] = fn - v - diffusion;

	a[3][0] = (v - fn) * t;
	a[3][1] = flux * t;
	a[3][3] = fn - v - diffusion;

	a[4][0] = fn * (c2 * kinetic - enthalpy) +
		  v * (2.0 * (1.0 - k) * kinetic + n * n / 3.0 + k * energy);
	a[4][1] = flux * enthalpy - c2 * fn * n - v * (4.0 / 3.0 - k) * n;
	a[4][2] = -c2 * fn * s - v * (1.0 - k) * s;
	a[4][3] = -c2 * fn * t - v * (1.0 - k) * t;
	a[4][4] = c1 * fn - v * k - diffusion;
}

/* The diagonal block of equation (9): I + 2 viscous N' + 2 diffusion I. */
static inline void diagonal(struct coefficients c, const double *restrict q, double b[5][5])
{
	const double k = model.conduction;
	const double inverse = q[R_INVERSE * LANES], kinetic = q[R_KINETIC * LANES], energy = q[R_ENERGY * LANES];
	const double n = q[R_ALONG * LANES], s = q[R_ACROSS_1 * LANES], t = q[R_ACROSS_2 * LANES];
	const double v = 2.0 * c.viscous * inverse, one = 1.0 + 2.0 * c.diffusion;

	for (int m = 0; m < 5; m++) {
		for (int o = 0; o < 5; o++)
			b[m][o] = 0.0;
	}
	b[0][0] = one;
	b[1][0] = -4.0 / 3.0 * v * n;
	b[1][1] = 4.0 / 3.0 * v + one;
	b[2][0] = -v * s;
	b[2][2] = v + one;
	b[3][0] = -v * t;
	b[3][3] = v + one;
	b[4][0] = -v * (2.0 * (1.0 - k) * kinetic + n * n / 3.0 + k * energy);
	b[4][1] = v * (4.0 / 3.0 - k) * n;
	b[4][2] = v * (1.0 - k) * s;
	b[4][3] = v * (1.0 - k) * t;
	b[4][4] = v * k + one;
}

/* The product of an off-diagonal block with a vector, which leaves out the zeros. */
static inline void multiply(double a[5][5], const double x[5], double product[5])
{
	product[0] = a[0][0] * x[0] + a[0][1] * x[1];
	product[1] = a[1][0] * x[0] + a[1][1] * x[1] + a[1][2] * x[2] + a[1][3] * x[3] + a[1][4] * x[4];
	product[2] = a[2][0] * x[0] + a[2][1] * x[1] + a[2][2] * x[2];
	product[3] = a[3][0] * x[0] + a[3][1] * x[1] + a[3][3] * x[3];
	product[4] = a[4][0] * x[0] + a[4][1] * x[1] + a[4][2] * x[2] + a[4][3] * x[3] + a[4][4] * x[4];
}

/*
 * One row of block elimination for one lane, equation (9): with the row before
 * in the form x' + C' x = r', brings this row into the same form. q, upper and
 * r are at this point; r counts as a sixth column of C.
 */
static inline void eliminate(struct coefficients c, const double *restrict q, double *restrict upper, double *restrict r)
{
	double a[5][5], b[5][5], x[5][6] = { { 0.0 } }, right[5][5] = { { 0.0 } };
	diagonal(c, q, b);
	off_diagonal(-c.convection, c.viscous, c.diffusion, q - DERIVED_WIDTH, a);
	off_diagonal(c.convection, c.viscous, c.diffusion, q + DERIVED_WIDTH, right);
#pragma GCC unroll 5
	for (int o = 0; o < 5; o++) {
		double before[5], product[5];
#pragma GCC unroll 5
		for (int m = 0; m < 5; m++)
			before[m] = upper[(m * 5 + o) * LANES - BLOCK_WIDTH];
		multiply(a, before, product);
#pragma GCC unroll 5
		for (int m = 0; m < 5; m++) {
			b[m][o] -= product[m];
			x[m][o] = right[m][o];
		}
	}
	double before[5], product[5];
#pragma GCC unroll 5
	for (int m = 0; m < 5; m++)
		before[m] = r[m * LANES - RHS_WIDTH];
	multiply(a, before, product);
#pragma GCC unroll 5
	for (int m = 0; m < 5; m++)
		x[m][5] = r[m * LANES] - product[m];

	/* Gauss-Jordan elimination turns b into the unit matrix and x into C' and r'. */
#pragma GCC unroll 5
	for (int p = 0; p < 5; p++) {
		double pivot = 1.0 / b[p][p];
#pragma GCC unroll 5
		for (int o = p + 1; o < 5; o++)
			b[p][o] *= pivot;
#pragma GCC unroll 6
		for (int o = 0; o < 6; o++)
			x[p][o] *= pivot;
#pragma GCC unroll 5
		for (int m = 0; m < 5; m++) {
			if (m == p)
				continue;
#pragma GCC unroll 5
			for (int o = p + 1; o < 5; o++)
				b[m][o] -= b[m][p] * b[p][o];
#pragma GCC unroll 6
			for (int o = 0; o < 6; o++)
				x[m][o] -= b[m][p] * x[p][o];
		}
	}
#pragma GCC unroll 5
	for (int m = 0; m < 5; m++) {
#pragma GCC unroll 5
		for (int o = 0; o < 5; o++)
			upper[(m * 5 + o) * LANES] = x[m][o];
		r[m * LANES] = x[m][5];
	}
}

/* Solves equation (9) for a batch of lines; the result replaces rhs. */
static void solve_lines(struct coefficients c, int n, struct buffers buffers)
{
	double *restrict derived = buffers.derived, *restrict rhs = buffers.rhs, *restrict upper = buffers.upper;
	/* Nothing changes on the faces: there r is zero, and so is C' of the first row. */
	for (int i = 0; i < BLOCK_WIDTH; i++)
		upper[i] = 0.0;
	for (int p = 1; p < n - 1; p++) {
		const double *restrict q = derived + p * DERIVED_WIDTH;
		double *restrict r = rhs + p * RHS_WIDTH, *restrict u = upper + p * BLOCK_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++)
			eliminate(c, q + l, u + l, r + l);
	}
	for (int p = n - 3; p > 0; p--) {
		double *restrict r = rhs + p * RHS_WIDTH, *restrict u = upper + p * BLOCK_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
#pragma GCC unroll 5
			for (int m = 0; m < 5; m++) {
				double sum = r[m * LANES + l];
#pragma GCC unroll 5
				for (int o = 0; o < 5; o++)
					sum -= u[(m * 5 + o) * LANES + l] * r[RHS_WIDTH + o * LANES + l];
				r[m * LANES + l] = sum;
			}
		}
	}
}

/* Solves for one batch: the change of U goes to rhs, or is added to the state in the last direction. */
static void solve_batch(struct zone *zone, struct batch b, struct buffers buffers)
{
	const struct coefficients c = make_coefficients(zone, b.direction, zone->dt);
	const int nx = zone->n[X];
	const struct place derived = place_of(zone, b, DERIVED), rhs = place_of(zone, b, VARIABLES);
	const int turned[VARIABLES] = {
		0, 1 + b.direction, 1 + (b.direction + 1) % DIRECTIONS, 1 + (b.direction + 2) % DIRECTIONS, 4,
	};
	for (int m = 0; m < R_VALUES; m++) {
		int from = m < VARIABLES - 1 ? turned[m] : m;
		gather(b, derived, zone->derived + from * nx, buffers.derived + m * LANES, DERIVED_WIDTH);
	}
	for (int m = 0; m < VARIABLES; m++)
		gather(b, rhs, zone->rhs + turned[m] * nx, buffers.rhs + m * LANES, RHS_WIDTH);
	solve_lines(c, b.n, buffers);
	for (int m = 0; m < VARIABLES; m++) {
		const double *line = buffers.rhs + m * LANES;
		if (b.direction == Z)
			scatter_add(b, rhs, zone->state + turned[m] * nx, line, RHS_WIDTH);
		else
			scatter(b, rhs, zone->rhs + turned[m] * nx, line, RHS_WIDTH);
	}
}

/* One step, equation (8): right-hand side, then lines along x, y and z. */
static void advance(struct zone *zone, double *memory)
{
	const size_t longest = longest_line(zone->n);
	const struct buffers buffers = {
		.derived = memory,
		.rhs = memory + longest * DERIVED_WIDTH,
		.upper = memory + longest * (DERIVED_WIDTH + RHS_WIDTH),
	};
	derive(zone);
	compute_rhs(zone, zone->dt);
	for (int d = X; d <= Z; d++) {
		const int count = batch_count(zone, d);
#pragma omp for schedule(static)
		for (int number = 0; number < count; number++)
			solve_batch(zone, get_batch(zone, d, number), buffers);
	}
}

const struct solver solver = {
	.benchmark = BT_MZ,
	.name = "BT-MZ",
	.mesh = MEAN_MESH,
	.operations = { 3478.8, -17655.7, 28023.7, 0.0 },
	.scratch = scratch,
	.advance = advance,
};
