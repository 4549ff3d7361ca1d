/* How long the steps take, and how fast that is. */
#ifndef NPBMZ_TIMING_H
#define NPBMZ_TIMING_H

#include "solver.h"
#include "zones.h"

/* Waits for all ranks and returns the time, in seconds from some past moment. */
double start_clock(void);

/* Seconds since start on the slowest rank; known on all ranks. */
double elapsed(double start);

/* Published floating-point operations of one step over all zones. */
double operations_per_step(const struct solver *solver, const struct partition *partition);

#endif
