/*
 * The model problem. Equation numbers here and in the other files are those of
 * docs/NPBMZ.md.
 */
#ifndef NPBMZ_MODEL_H
#define NPBMZ_MODEL_H

/* Variables of the state U: density, momenta, total energy. */
enum { DENSITY, MOMENTUM_X, MOMENTUM_Y, MOMENTUM_Z, ENERGY, VARIABLES };

enum { X, Y, Z, DIRECTIONS };

/* Constants of the equations (2) to (5). */
struct model {
	double gamma;                  /* c1 */
	double gamma_minus_1;          /* c2 */
	double viscosity;              /* c3 c4 */
	double conduction;             /* c1 c5: energy diffuses this much faster than momentum */
	double diffusion[DIRECTIONS];  /* second differences of U itself */
	double dissipation;            /* fourth differences of U */
	double exact[VARIABLES][13];   /* polynomials of the exact solution */
};

extern const struct model model;

#endif
