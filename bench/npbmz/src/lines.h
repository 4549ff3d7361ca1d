/*
 * Batches of grid lines for solvers that work along lines. Lines of a
 * direction are independent, so LANES of them are copied into a buffer side by
 * side and solved together: loops over lanes are vectors whatever the
 * direction is.
 */
#ifndef NPBMZ_LINES_H
#define NPBMZ_LINES_H

#include "field.h"

enum { LANES = 4 };

/* Points of the longest line of a zone, for which buffers must suffice. */
static inline size_t longest_line(const int n[DIRECTIONS])
{
	int longest = n[X] > n[Y] ? n[X] : n[Y];
	return (size_t)(longest > n[Z] ? longest : n[Z]);
}

struct batch {
	int direction;
	int lines;     /* at most LANES */
	int i, j, k;   /* the first line's point that lies on the face */
	int n;         /* points of a line, faces included */
};

/* Batches that cover the interior lines of a direction. */
static inline int batch_count(const struct zone *zone, int direction)
{
	const int side = direction == X ? Y : X, outer = direction == Z ? Y : Z;
	return (zone->n[outer] - 2) * ((zone->n[side] - 2 + LANES - 1) / LANES);
}

static inline struct batch get_batch(const struct zone *zone, int direction, int number)
{
	const int side = direction == X ? Y : X;
	const int across = (zone->n[side] - 2 + LANES - 1) / LANES;
	const int first = 1 + number % across * LANES, outer = 1 + number / across;
	const int left = zone->n[side] - 1 - first;
	return (struct batch){
		.direction = direction,
		.lines = left < LANES ? left : LANES,
		.i = direction == X ? 0 : first,
		.j = direction == X ? first : direction == Y ? 0 : outer,
		.k = direction == Z ? 0 : outer,
		.n = zone->n[direction],
	};
}

/* Where a batch lies in a field with that many values per point. */
struct place {
	size_t start;
	ptrdiff_t along;  /* to the next point of a line */
	ptrdiff_t across; /* to the next line */
};

static inline struct place place_of(const struct zone *zone, struct batch b, int values)
{
	return (struct place){
		.start = row(zone, values, b.j, b.k) + (size_t)b.i,
		.along = stride(zone, values, b.direction),
		.across = b.direction == X ? stride(zone, values, Y) : 1,
	};
}

/*
 * Copies one value of all points of a batch to line[point * width + lane].
 * Lanes without a line get the last line once more, so that they hold numbers
 * that can be divided by.
 */
static inline void gather(struct batch b, struct place at, const double *restrict field, double *restrict line, int width)
{
	const double *restrict from = field + at.start;
	if (b.lines == LANES && at.across == 1) {
		for (int p = 0; p < b.n; p++) {
			for (int l = 0; l < LANES; l++)
				line[p * width + l] = from[p * at.along + l];
		}
		return;
	}
	for (int l = 0; l < LANES; l++) {
		const double *restrict lane = from + (l < b.lines ? l : b.lines - 1) * at.across;
		for (int p = 0; p < b.n; p++)
			line[p * width + l] = lane[p * at.along];
	}
}

/* Copies one value of the interior points of a batch back. */
static inline void scatter(struct batch b, struct place at, double *restrict field, const double *restrict line, int width)
{
	double *restrict to = field + at.start;
	if (b.lines == LANES && at.across == 1) {
		for (int p = 1; p < b.n - 1; p++) {
			for (int l = 0; l < LANES; l++)
				to[p * at.along + l] = line[p * width + l];
		}
		return;
	}
	for (int l = 0; l < b.lines; l++) {
		for (int p = 1; p < b.n - 1; p++)
			to[l * at.across + p * at.along] = line[p * width + l];
	}
}

/* Adds one value of the interior points of a batch to a field. */
static inline void scatter_add(struct batch b, struct place at, double *restrict field, const double *restrict line,
			       int width)
{
	double *restrict to = field + at.start;
	if (b.lines == LANES && at.across == 1) {
		for (int p = 1; p < b.n - 1; p++) {
			for (int l = 0; l < LANES; l++)
				to[p * at.along + l] += line[p * width + l];
		}
		return;
	}
	for (int l = 0; l < b.lines; l++) {
		for (int p = 1; p < b.n - 1; p++)
			to[l * at.across + p * at.along] += line[p * width + l];
	}
}

#endif
