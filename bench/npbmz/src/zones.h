/* How the mesh is cut into zones, and which rank has which zone. */
#ifndef NPBMZ_ZONES_H
#define NPBMZ_ZONES_H

#include <stdbool.h>

#include "problem.h"

/* Sides of a zone that have a neighbour: x and y are periodic, z is not. */
enum side { WEST, EAST, SOUTH, NORTH, SIDES };

struct partition {
	int zones[2];  /* in x and in y */
	int count;     /* zones in all */
	int *size[2];  /* points of each column of zones in x, of each row in y */
	int height;    /* points in z, the same everywhere */
	int ranks;
	int *owner;    /* rank of each zone */
};

/*
 * Cuts the problem into zones, equation (17), and deals them out to the ranks,
 * the largest first, each to the rank with the fewest points. False if there
 * is no memory. ranks is from 1 to the number of zones.
 */
bool make_partition(struct partition *partition, const struct problem *problem, int ranks);
void free_partition(struct partition *partition);

/* Points of a zone in a direction. */
int zone_size(const struct partition *partition, int zone, int direction);

/* Points of a zone in all. */
long zone_points(const struct partition *partition, int zone);

/* The zone on a side of this one; the zone itself if it is alone in that direction. */
int zone_neighbour(const struct partition *partition, int zone, enum side side);

/* Largest number of points that a rank has, divided by the mean. */
double imbalance(const struct partition *partition);

#endif
