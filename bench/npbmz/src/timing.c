#include "timing.h"

#include <mpi.h>

double start_clock(void)
{
	MPI_Barrier(MPI_COMM_WORLD);
	return MPI_Wtime();
}

double elapsed(double start)
{
	double seconds = MPI_Wtime() - start;
	MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
	return seconds;
}

double operations_per_step(const struct solver *solver, const struct partition *partition)
{
	double sum = 0.0;
	for (int z = 0; z < partition->count; z++) {
		double x = zone_size(partition, z, X), y = zone_size(partition, z, Y), height = zone_size(partition, z, Z);
		sum += solver->operations[0] * x * y * height +
		       solver->operations[1] * (x * y + x * height + y * height) / 3.0 +
		       solver->operations[2] * (x + y + height) / 3.0 + solver->operations[3];
	}
	return sum;
}
