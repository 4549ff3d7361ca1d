/* What the three benchmarks differ in. */
#ifndef NPBMZ_SOLVER_H
#define NPBMZ_SOLVER_H

#include "field.h"
#include "problem.h"

/* The mesh spacing of a zone, equation (15). */
enum mesh {
	MEAN_MESH, /* of all zones, whatever its own size */
	OWN_MESH,  /* such that its coordinates go from 0 to 1 */
};

/*
 * begin and advance are called by all threads of a parallel region. They find
 * the faces as the exchange of the step has left them.
 */
struct solver {
	enum benchmark benchmark;
	const char *name;
	enum mesh mesh;
	bool interior_error;   /* equation (15) over interior points only */
	bool surface_integral; /* equation (16) is verified */
	/*
	 * Published count of floating-point operations of a step and zone: the
	 * first times its points, the second times the mean of the points of its
	 * three faces, the third times that of its three edges, and the fourth.
	 */
	double operations[4];
	/* Values of scratch memory that each thread needs for a zone of a size. */
	size_t (*scratch)(const int n[DIRECTIONS]);
	/* Computes what the first step takes from a step before it; NULL if nothing. */
	void (*begin)(struct zone *zone);
	/* Advances a zone by one time step. */
	void (*advance)(struct zone *zone, double *scratch);
};

/* The one that this program was linked with. */
extern const struct solver solver;

#endif
