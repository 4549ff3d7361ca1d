/*
 * SP-MZ: approximate factorisation in diagonal form, equation (10): five
 * scalar pentadiagonal systems per line, equation (11).
 */
#include <math.h>

#include "lines.h"
#include "rhs.h"
#include "solver.h"

/*
 * Characteristic variables: three move with the velocity along the line, the
 * other two with sound up and down the line. The three share one matrix.
 */
enum { CONVECTED, UPWARD, DOWNWARD, SYSTEMS };

/* Values right of the diagonal in a row that is eliminated. */
enum { NEXT, NEXT_BUT_ONE, REST };

/* What the matrices are made of besides the velocity. */
enum { SOUND, DIFFUSION, WAVES };

/* Strides from one point to the next in the buffers of a batch. */
enum {
	DERIVED_WIDTH = DERIVED * LANES,
	WAVE_WIDTH = WAVES * LANES,
	RHS_WIDTH = VARIABLES * LANES,
	REST_WIDTH = SYSTEMS * REST * LANES,
};

/* A batch of lines. */
struct buffers {
	double *restrict derived;
	double *restrict waves;
	double *restrict rhs;
	double *restrict rest;
};

static size_t scratch(const int n[DIRECTIONS])
{
	return longest_line(n) * (DERIVED_WIDTH + WAVE_WIDTH + RHS_WIDTH + REST_WIDTH);
}

/* Speed of sound and diffusion at all points of a batch, for the matrices of equation (11). */
static void compute_waves(struct coefficients c, int n, const double *restrict derived, double *restrict waves)
{
	const double scale = model.gamma * model.gamma_minus_1;
	const double viscous = c.viscous * (model.conduction > 4.0 / 3.0 ? model.conduction : 4.0 / 3.0);
	for (int p = 0; p < n; p++) {
		const double *restrict q = derived + p * DERIVED_WIDTH;
		double *restrict w = waves + p * WAVE_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
			w[SOUND * LANES + l] = sqrt(scale * (q[SPECIFIC_ENERGY * LANES + l] - q[KINETIC * LANES + l]));
			w[DIFFUSION * LANES + l] = c.diffusion + viscous * q[INVERSE_DENSITY * LANES + l];
		}
	}
}

/* The change of U becomes characteristic variables of x: T_x^-1 of equation (10). */
static void to_characteristics(int n, const struct buffers *buffers)
{
	const double half = sqrt(0.5);
	for (int p = 1; p < n - 1; p++) {
		const double *restrict q = buffers->derived + p * DERIVED_WIDTH;
		const double *restrict w = buffers->waves + p * WAVE_WIDTH;
		double *restrict r = buffers->rhs + p * RHS_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
			double inverse = q[INVERSE_DENSITY * LANES + l], sound = w[SOUND * LANES + l];
			double u = q[VELOCITY_X * LANES + l], v = q[VELOCITY_Y * LANES + l], z = q[VELOCITY_Z * LANES + l];
			double r0 = r[l], r1 = r[LANES + l], r2 = r[2 * LANES + l], r3 = r[3 * LANES + l];
			double pressure = model.gamma_minus_1 * (q[KINETIC * LANES + l] * r0 - u * r1 - v * r2 - z * r3 +
								 r[4 * LANES + l]);
			double inverse_sound = 1.0 / sound;
			double acoustic = half * inverse * inverse_sound * pressure;
			double along = half * inverse * (r1 - u * r0);
			r[l] = r0 - inverse_sound * inverse_sound * pressure;
			r[LANES + l] = inverse * (r3 - z * r0);
			r[2 * LANES + l] = -inverse * (r2 - v * r0);
			r[3 * LANES + l] = acoustic + along;
			r[4 * LANES + l] = acoustic - along;
		}
	}
}

/* Characteristic variables of x become those of y: T_y^-1 T_x of equation (10). */
static void turn_x_to_y(int n, double *restrict rhs)
{
	const double half = sqrt(0.5);
	for (int p = 1; p < n - 1; p++) {
		double *restrict r = rhs + p * RHS_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
			double r0 = r[l], r1 = r[LANES + l], r2 = r[2 * LANES + l];
			double difference = half * (r[3 * LANES + l] - r[4 * LANES + l]);
			double mean = 0.5 * (r[3 * LANES + l] + r[4 * LANES + l]);
			r[l] = -r1;
			r[LANES + l] = r0;
			r[2 * LANES + l] = difference;
			r[3 * LANES + l] = mean - half * r2;
			r[4 * LANES + l] = mean + half * r2;
		}
	}
}

/* Characteristic variables of y become those of z: T_z^-1 T_y of equation (10). */
static void turn_y_to_z(int n, double *restrict rhs)
{
	const double half = sqrt(0.5);
	for (int p = 1; p < n - 1; p++) {
		double *restrict r = rhs + p * RHS_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
			double r0 = r[l], r1 = r[LANES + l], r2 = r[2 * LANES + l];
			double difference = half * (r[3 * LANES + l] - r[4 * LANES + l]);
			double mean = 0.5 * (r[3 * LANES + l] + r[4 * LANES + l]);
			r[l] = difference;
			r[LANES + l] = -r2;
			r[2 * LANES + l] = r1;
			r[3 * LANES + l] = mean - half * r0;
			r[4 * LANES + l] = mean + half * r0;
		}
	}
}

/* Characteristic variables of z become the change of U: T_z of equation (10). */
static void from_characteristics(int n, const struct buffers *buffers)
{
	const double half = sqrt(0.5), inverse_pressure = 1.0 / model.gamma_minus_1;
	for (int p = 1; p < n - 1; p++) {
		const double *restrict q = buffers->derived + p * DERIVED_WIDTH;
		const double *restrict w = buffers->waves + p * WAVE_WIDTH;
		double *restrict r = buffers->rhs + p * RHS_WIDTH;
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
			double density = 1.0 / q[INVERSE_DENSITY * LANES + l], sound = w[SOUND * LANES + l];
			double u = q[VELOCITY_X * LANES + l], v = q[VELOCITY_Y * LANES + l], z = q[VELOCITY_Z * LANES + l];
			double acoustic = half * density * (r[3 * LANES + l] + r[4 * LANES + l]);
			double du = -density * r[LANES + l], dv = density * r[l];
			double dz = half * density * (r[3 * LANES + l] - r[4 * LANES + l]);
			double d = r[2 * LANES + l] + acoustic / sound;
			r[l] = d;
			r[LANES + l] = u * d + du;
			r[2 * LANES + l] = v * d + dv;
			r[3 * LANES + l] = z * d + dz;
			r[4 * LANES + l] = q[KINETIC * LANES + l] * d + u * du + v * dv + z * dz +
					   inverse_pressure * sound * acoustic;
		}
	}
}

/* Where the two rows above a row are, in buffers of what is left of rows and of right-hand sides. */
struct above {
	int rest, rest_that, rhs, rhs_that;
};

/*
 * One row of the elimination of one pentadiagonal system, equation (11): the
 * row b2 b1 d a1 a2 is reduced by the two above it, which already have one on
 * the diagonal and two values right of it, and is brought into that form. rest
 * and r, the right-hand sides of so many variables, are at this row.
 */
static inline void eliminate(double b2, double b1, double d, double a1, double a2, struct above above,
			     double *restrict rest, int variables, double *restrict r)
{
	const double *rest1 = rest - above.rest, *rest2 = rest - above.rest_that;
	const double *r1 = r - above.rhs, *r2 = r - above.rhs_that;
	double left = b1 - b2 * rest2[NEXT * LANES];
	double scale = 1.0 / (d - b2 * rest2[NEXT_BUT_ONE * LANES] - left * rest1[NEXT * LANES]);
	rest[NEXT * LANES] = scale * (a1 - left * rest1[NEXT_BUT_ONE * LANES]);
	rest[NEXT_BUT_ONE * LANES] = scale * a2;
#pragma GCC unroll 3
	for (int m = 0; m < variables; m++)
		r[m * LANES] = scale * (r[m * LANES] - b2 * r2[m * LANES] - left * r1[m * LANES]);
}

/* Solves the systems of equation (11) for a batch of lines; the result replaces rhs. */
static void solve_lines(struct coefficients c, double dissipation, int n, const double *restrict velocity,
			struct buffers buffers)
{
	double *restrict rhs = buffers.rhs, *restrict rest = buffers.rest;
	const double *restrict waves = buffers.waves;
	for (int i = 0; i < REST_WIDTH; i++)
		rest[i] = 0.0;
	for (int p = 1; p < n - 1; p++) {
		const double *restrict v = velocity + p * DERIVED_WIDTH, *restrict wave = waves + p * WAVE_WIDTH;
		double *restrict e = rest + p * REST_WIDTH, *restrict r = rhs + p * RHS_WIDTH;
		/* Row 1 has no second row above it, and a zero where that would count. */
		const int that = p > 1 ? 2 : 1;
		const struct above above = { REST_WIDTH, that * REST_WIDTH, RHS_WIDTH, that * RHS_WIDTH };
		double w[5];
		fourth_difference(p, n, w);
		for (int k = 0; k < 5; k++)
			w[k] *= dissipation;
		const double b2 = w[0], b1 = w[1], diagonal = w[2] + 1.0, a1 = w[3], a2 = w[4];
#pragma omp simd
		for (int l = 0; l < LANES; l++) {
			double before = b1 - c.convection * v[l - DERIVED_WIDTH] - wave[DIFFUSION * LANES + l - WAVE_WIDTH];
			double here = diagonal + 2.0 * wave[DIFFUSION * LANES + l];
			double after = a1 + c.convection * v[l + DERIVED_WIDTH] - wave[DIFFUSION * LANES + l + WAVE_WIDTH];
			double sound_before = c.convection * wave[SOUND * LANES + l - WAVE_WIDTH];
			double sound_after = c.convection * wave[SOUND * LANES + l + WAVE_WIDTH];
			eliminate(b2, before, here, after, a2, above, e + l, 3, r + l);
			eliminate(b2, before - sound_before, here, after + sound_after, a2, above,
				  e + UPWARD * REST * LANES + l, 1, r + 3 * LANES + l);
			eliminate(b2, before + sound_before, here, after - sound_after, a2, above,
				  e + DOWNWARD * REST * LANES + l, 1, r + 4 * LANES + l);
		}
	}
	/* The last row has its result, and zeros right of it. */
	for (int p = n - 3; p > 0; p--) {
		const double *restrict e = rest + p * REST_WIDTH;
		double *restrict r = rhs + p * RHS_WIDTH;
		for (int m = 0; m < VARIABLES; m++) {
			const double *restrict s = e + (m < 3 ? CONVECTED : m == 3 ? UPWARD : DOWNWARD) * REST * LANES;
			for (int l = 0; l < LANES; l++)
				r[m * LANES + l] -= s[NEXT * LANES + l] * r[RHS_WIDTH + m * LANES + l] +
						    s[NEXT_BUT_ONE * LANES + l] * r[2 * RHS_WIDTH + m * LANES + l];
		}
	}
}

/* Solves for one batch of lines, turning to the variables of the next direction. */
static void solve_batch(struct zone *zone, struct batch b, struct buffers buffers)
{
	const struct coefficients c = make_coefficients(zone, b.direction, zone->dt);
	const int nx = zone->n[X], d = b.direction;
	const struct place derived = place_of(zone, b, DERIVED), rhs = place_of(zone, b, VARIABLES);
	for (int m = 0; m < DERIVED; m++) {
		if (d != Y || m == INVERSE_DENSITY || m == VELOCITY_Y || m == KINETIC || m == SPECIFIC_ENERGY)
			gather(b, derived, zone->derived + m * nx, buffers.derived + m * LANES, DERIVED_WIDTH);
	}
	for (int m = 0; m < VARIABLES; m++)
		gather(b, rhs, zone->rhs + m * nx, buffers.rhs + m * LANES, RHS_WIDTH);
	compute_waves(c, b.n, buffers.derived, buffers.waves);
	if (d == X)
		to_characteristics(b.n, &buffers);
	solve_lines(c, zone->dt * model.dissipation, b.n, buffers.derived + (VELOCITY_X + d) * LANES, buffers);
	if (d == X)
		turn_x_to_y(b.n, buffers.rhs);
	else if (d == Y)
		turn_y_to_z(b.n, buffers.rhs);
	else
		from_characteristics(b.n, &buffers);
	for (int m = 0; m < VARIABLES; m++) {
		if (d == Z)
			scatter_add(b, rhs, zone->state + m * nx, buffers.rhs + m * LANES, RHS_WIDTH);
		else
			scatter(b, rhs, zone->rhs + m * nx, buffers.rhs + m * LANES, RHS_WIDTH);
	}
}

/* One step, equation (10): right-hand side, then lines along x, y and z. */
static void advance(struct zone *zone, double *memory)
{
	const size_t longest = longest_line(zone->n);
	struct buffers buffers = { .derived = memory };
	buffers.waves = buffers.derived + longest * DERIVED_WIDTH;
	buffers.rhs = buffers.waves + longest * WAVE_WIDTH;
	buffers.rest = buffers.rhs + longest * RHS_WIDTH;
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
	.benchmark = SP_MZ,
	.name = "SP-MZ",
	.mesh = MEAN_MESH,
	.operations = { 881.174, -4683.91, 11484.5, -19272.4 },
	.scratch = scratch,
	.advance = advance,
};
