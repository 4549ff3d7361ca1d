/* Benchmarks and classes: sizes, time steps and published norms. */
#ifndef NPBMZ_PROBLEM_H
#define NPBMZ_PROBLEM_H

#include "model.h"

enum benchmark { BT_MZ, SP_MZ, LU_MZ };

/* The figures that verify a run, equations (14) to (16). */
struct norms {
	double residual[VARIABLES];
	double error[VARIABLES];
	double surface; /* LU-MZ only */
};

struct problem {
	char class;
	int size[DIRECTIONS]; /* mesh points of all zones together */
	int zones[2];         /* in x and in y */
	double dt;
	int iterations;
	double ratio;         /* of the widest zone to the narrowest */
	struct norms reference;
};

/* Classes that are built in, smallest first. */
#define CLASSES "SWABC"

/* The problem of a class, one of CLASSES; NULL if there is none. */
const struct problem *find_problem(enum benchmark benchmark, char class);
#endif
