#include "rhs.h"

#include "initial.h"

void derive(struct zone *zone)
{
	const int nx = zone->n[X];
#pragma omp for collapse(2) schedule(static)
	for (int k = 0; k < zone->n[Z]; k++) {
		for (int j = 0; j < zone->n[Y]; j++) {
			const double *restrict u = zone->state + row(zone, VARIABLES, j, k);
			double *restrict p = zone->derived + row(zone, DERIVED, j, k);
#pragma omp simd
			for (int i = 0; i < nx; i++) {
				double inverse = 1.0 / u[i];
				double vx = u[i + MOMENTUM_X * nx] * inverse;
				double vy = u[i + MOMENTUM_Y * nx] * inverse;
				double vz = u[i + MOMENTUM_Z * nx] * inverse;
				p[i + INVERSE_DENSITY * nx] = inverse;
				p[i + VELOCITY_X * nx] = vx;
				p[i + VELOCITY_Y * nx] = vy;
				p[i + VELOCITY_Z * nx] = vz;
				p[i + KINETIC * nx] = 0.5 * (vx * vx + vy * vy + vz * vz);
				p[i + SPECIFIC_ENERGY * nx] = u[i + ENERGY * nx] * inverse;
			}
		}
	}
}

static inline double second_difference(const double *at, ptrdiff_t step)
{
	return at[step] - 2.0 * at[0] + at[-step];
}

/*
 * Adds the convective, viscous and second-difference terms of one direction,
 * equation (4), to the interior of a row r. u and p are the same row of state
 * and derived values, su and sp the way to the next point in the direction.
 */
static inline void add_fluxes(int nx, int direction, struct coefficients c, const double *restrict u, ptrdiff_t su,
			      const double *restrict p, ptrdiff_t sp, double *restrict r)
{
	const double pressure = model.gamma_minus_1;
	const double work = (1.0 - model.conduction) * c.viscous, conduct = model.conduction * c.viscous;
	const double normal_shear = 4.0 / 3.0 * c.viscous, normal_work = c.viscous / 6.0;
	const int normal = MOMENTUM_X + direction;
	const int first = MOMENTUM_X + (direction + 1) % DIRECTIONS, second = MOMENTUM_X + (direction + 2) % DIRECTIONS;
#pragma omp simd
	for (int i = 1; i < nx - 1; i++) {
		const double *density = u + i, *energy = u + i + ENERGY * nx;
		const double *mn = u + i + normal * nx, *ma = u + i + first * nx, *mb = u + i + second * nx;
		const double *velocity = p + i + normal * nx;
		const double *kinetic = p + i + KINETIC * nx;
		double above = velocity[sp], here = velocity[0], below = velocity[-sp];
		double pressure_above = pressure * (energy[su] - density[su] * kinetic[sp]);
		double pressure_below = pressure * (energy[-su] - density[-su] * kinetic[-sp]);
		double curvature = above - 2.0 * here + below;

		r[i] += c.diffusion * second_difference(density, su) - c.convection * (mn[su] - mn[-su]);
		r[i + normal * nx] += c.diffusion * second_difference(mn, su) + normal_shear * curvature -
				      c.convection * (mn[su] * above - mn[-su] * below + pressure_above - pressure_below);
		r[i + first * nx] += c.diffusion * second_difference(ma, su) +
				     c.viscous * second_difference(p + i + first * nx, sp) -
				     c.convection * (ma[su] * above - ma[-su] * below);
		r[i + second * nx] += c.diffusion * second_difference(mb, su) +
				      c.viscous * second_difference(p + i + second * nx, sp) -
				      c.convection * (mb[su] * above - mb[-su] * below);
		r[i + ENERGY * nx] += c.diffusion * second_difference(energy, su) +
				      work * second_difference(kinetic, sp) +
				      normal_work * (above * above - 2.0 * here * here + below * below) +
				      conduct * second_difference(p + i + SPECIFIC_ENERGY * nx, sp) -
				      c.convection * ((energy[su] + pressure_above) * above -
						      (energy[-su] + pressure_below) * below);
	}
}

void fourth_difference(int at, int n, double weight[5])
{
	weight[0] = at < 3 ? 0.0 : 1.0;
	weight[1] = at < 2 ? 0.0 : -4.0;
	weight[2] = 6.0 - (at < 2 ? 1.0 : 0.0) - (at > n - 3 ? 1.0 : 0.0);
	weight[3] = at > n - 3 ? 0.0 : -4.0;
	weight[4] = at > n - 4 ? 0.0 : 1.0;
}

/* Weights of the dissipation, and where the points are that they are for. */
struct stencil {
	double weight[5];
	ptrdiff_t offset[5];
};

/* The dissipation at point at of n in a direction. Where a weight is zero the centre stands in for the point. */
static struct stencil make_stencil(int at, int n, ptrdiff_t step)
{
	struct stencil s;
	fourth_difference(at, n, s.weight);
	for (int k = 0; k < 5; k++) {
		s.offset[k] = s.weight[k] == 0.0 ? 0 : (k - 2) * step;
		s.weight[k] *= model.dissipation;
	}
	return s;
}

/* Subtracts the fourth-difference dissipation at points begin..end-1 of a row. */
static inline void add_dissipation(int nx, int begin, int end, struct stencil s, const double *restrict u,
				   double *restrict r)
{
	const double *w = s.weight;
	for (int m = 0; m < VARIABLES; m++) {
		const double *um = u + m * nx;
		double *rm = r + m * nx;
#pragma omp simd
		for (int i = begin; i < end; i++) {
			rm[i] -= w[0] * um[i + s.offset[0]] + w[1] * um[i + s.offset[1]] + w[2] * um[i] +
				 w[3] * um[i + s.offset[3]] + w[4] * um[i + s.offset[4]];
		}
	}
}

/* The dissipation along the row itself, where the stencil changes near both ends. */
static void add_dissipation_along(int nx, const double *restrict u, double *restrict r)
{
	for (int i = 1; i < nx - 1; i++) {
		int end = i == 3 && nx > 7 ? nx - 3 : i + 1;
		add_dissipation(nx, i, end, make_stencil(i, nx, 1), u, r);
		i = end - 1;
	}
}

void compute_rhs(struct zone *zone, double scale)
{
	const int nx = zone->n[X];
	const ptrdiff_t su[] = { stride(zone, VARIABLES, X), stride(zone, VARIABLES, Y), stride(zone, VARIABLES, Z) };
	const ptrdiff_t sp[] = { stride(zone, DERIVED, X), stride(zone, DERIVED, Y), stride(zone, DERIVED, Z) };
	const struct coefficients c[] = {
		make_coefficients(zone, X, 1.0),
		make_coefficients(zone, Y, 1.0),
		make_coefficients(zone, Z, 1.0),
	};
#pragma omp for collapse(2) schedule(static)
	for (int k = 1; k < zone->n[Z] - 1; k++) {
		for (int j = 1; j < zone->n[Y] - 1; j++) {
			const size_t at = row(zone, VARIABLES, j, k);
			const double *u = zone->state + at, *p = zone->derived + row(zone, DERIVED, j, k);
			const double *forcing = zone->forcing + at;
			double *restrict r = zone->rhs + at;
			for (int i = 0; i < VARIABLES * nx; i++)
				r[i] = forcing[i];
			add_fluxes(nx, X, c[X], u, su[X], p, sp[X], r);
			add_fluxes(nx, Y, c[Y], u, su[Y], p, sp[Y], r);
			add_fluxes(nx, Z, c[Z], u, su[Z], p, sp[Z], r);
			add_dissipation_along(nx, u, r);
			add_dissipation(nx, 1, nx - 1, make_stencil(j, zone->n[Y], su[Y]), u, r);
			add_dissipation(nx, 1, nx - 1, make_stencil(k, zone->n[Z], su[Z]), u, r);
			for (int i = 0; i < VARIABLES * nx; i++)
				r[i] *= scale;
		}
	}
}

void compute_forcing(struct zone *zone)
{
	const size_t values = VARIABLES * points(zone);
	for (size_t i = 0; i < values; i++)
		zone->forcing[i] = 0.0;
	set_exact(zone);
#pragma omp parallel
	{
		derive(zone);
		compute_rhs(zone, -1.0);
#pragma omp for schedule(static)
		for (size_t i = 0; i < values; i++)
			zone->forcing[i] = zone->rhs[i];
	}
}
