/*
 * late: rank 0 enters MPI_Finalize at once, the other ranks a second later.
 * Until then they answer, so that rank 0 is waiting for them in PMI when they
 * disconnect: the case in which MPICH over UCX hangs without libvft-mpich.
 */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	int rank, size, flag;
	double begun, token = 0;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	/* All have talked to all, so that all have something to disconnect. */
	for (int peer = 0; peer < size; peer++)
		MPI_Bcast(&token, 1, MPI_DOUBLE, peer, MPI_COMM_WORLD);
	MPI_Barrier(MPI_COMM_WORLD);
	begun = MPI_Wtime();
	while (rank > 0 && MPI_Wtime() - begun < 1.0)
		MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &flag, MPI_STATUS_IGNORE);
	MPI_Finalize();
	if (rank == 0)
		printf("finalized\n");
	return 0;
}
