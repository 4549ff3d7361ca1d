/* States that are known in advance: the exact one, and where a run begins. */
#ifndef NPBMZ_INITIAL_H
#define NPBMZ_INITIAL_H

#include "field.h"

/* The exact steady solution U*(xi, eta, zeta), equation (1). */
void exact_solution(const double at[DIRECTIONS], double state[VARIABLES]);

/* Sets the exact solution at all points. */
void set_exact(struct zone *zone);

/* Sets the exact solution on the faces and interpolates inside, equation (7). */
void set_initial(struct zone *zone);

#endif
