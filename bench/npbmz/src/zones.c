#include "zones.h"

#include <math.h>
#include <stdlib.h>

/* Sizes of zones along one direction: differences of their ends, equation (17). */
static void cut(int *size, int points, int zones, double ratio)
{
	double log_ratio = log(ratio);
	bool uniform = zones == 1 || fabs(ratio - 1.0) < 1e-10;
	double q = uniform ? 1.0 : exp(log_ratio / (zones - 1));
	double narrowest = uniform ? 0.0 : points * (q - 1.0) / (pow(q, zones) - 1.0);
	int begin = 0;
	for (int i = 0; i < zones; i++) {
		int end = uniform ? (int)((long)(i + 1) * points / zones)
				  : (int)(narrowest * (pow(q, i + 1) - 1.0) / (q - 1.0) + 0.45);
		size[i] = end - begin;
		begin = end;
	}
}

int zone_size(const struct partition *partition, int zone, int direction)
{
	switch (direction) {
	case X:
		return partition->size[X][zone % partition->zones[X]];
	case Y:
		return partition->size[Y][zone / partition->zones[X]];
	default:
		return partition->height;
	}
}

long zone_points(const struct partition *partition, int zone)
{
	return (long)zone_size(partition, zone, X) * zone_size(partition, zone, Y) * partition->height;
}

int zone_neighbour(const struct partition *partition, int zone, enum side side)
{
	int across = partition->zones[X], along = partition->zones[Y];
	int i = zone % across, j = zone / across;
	switch (side) {
	case WEST:
		i = (i + across - 1) % across;
		break;
	case EAST:
		i = (i + 1) % across;
		break;
	case SOUTH:
		j = (j + along - 1) % along;
		break;
	default:
		j = (j + 1) % along;
		break;
	}
	return i + j * across;
}

/* Bin packing: the largest zone not yet dealt out to the least loaded rank. */
static bool assign(struct partition *partition)
{
	long *load = calloc((size_t)partition->ranks, sizeof *load);
	if (!load)
		return false;
	for (int z = 0; z < partition->count; z++)
		partition->owner[z] = -1;
	for (int dealt = 0; dealt < partition->count; dealt++) {
		int zone = -1, rank = 0;
		for (int z = 0; z < partition->count; z++) {
			if (partition->owner[z] < 0 && (zone < 0 || zone_points(partition, z) > zone_points(partition, zone)))
				zone = z;
		}
		for (int r = 1; r < partition->ranks; r++) {
			if (load[r] < load[rank])
				rank = r;
		}
		partition->owner[zone] = rank;
		load[rank] += zone_points(partition, zone);
	}
	free(load);
	return true;
}

bool make_partition(struct partition *partition, const struct problem *problem, int ranks)
{
	*partition = (struct partition){
		.zones = { problem->zones[X], problem->zones[Y] },
		.count = problem->zones[X] * problem->zones[Y],
		.height = problem->size[Z],
		.ranks = ranks,
	};
	partition->size[X] = calloc((size_t)problem->zones[X], sizeof *partition->size[X]);
	partition->size[Y] = calloc((size_t)problem->zones[Y], sizeof *partition->size[Y]);
	partition->owner = calloc((size_t)partition->count, sizeof *partition->owner);
	if (!partition->size[X] || !partition->size[Y] || !partition->owner) {
		free_partition(partition);
		return false;
	}
	cut(partition->size[X], problem->size[X], problem->zones[X], problem->ratio);
	cut(partition->size[Y], problem->size[Y], problem->zones[Y], problem->ratio);
	if (!assign(partition)) {
		free_partition(partition);
		return false;
	}
	return true;
}

void free_partition(struct partition *partition)
{
	free(partition->size[X]);
	free(partition->size[Y]);
	free(partition->owner);
	*partition = (struct partition){ 0 };
}

double imbalance(const struct partition *partition)
{
	long total = 0, largest = 0;
	for (int rank = 0; rank < partition->ranks; rank++) {
		long load = 0;
		for (int z = 0; z < partition->count; z++)
			load += partition->owner[z] == rank ? zone_points(partition, z) : 0;
		largest = load > largest ? load : largest;
		total += load;
	}
	return (double)largest * partition->ranks / (double)total;
}
