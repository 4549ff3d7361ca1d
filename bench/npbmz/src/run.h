/* A run from the initial state to the norms. */
#ifndef NPBMZ_RUN_H
#define NPBMZ_RUN_H

#include "report.h"
#include "solver.h"
#include "zones.h"

/*
 * Runs the steps that result asks for and fills in its figures, norms and
 * verdict on all ranks; rank 0 prints progress. Called by all ranks. False, on
 * this rank alone, if there is no memory.
 */
bool run(const struct solver *solver, const struct partition *partition, int rank, struct result *result);

#endif
