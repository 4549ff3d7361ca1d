#include "field.h"

#include <stdlib.h>

bool make_fields(struct zone *zone)
{
	size_t all = points(zone);
	zone->state = calloc(all, VARIABLES * sizeof *zone->state);
	zone->rhs = calloc(all, VARIABLES * sizeof *zone->rhs);
	zone->forcing = calloc(all, VARIABLES * sizeof *zone->forcing);
	zone->derived = calloc(all, DERIVED * sizeof *zone->derived);
	if (!zone->state || !zone->rhs || !zone->forcing || !zone->derived) {
		free_fields(zone);
		return false;
	}
	return true;
}

void free_fields(struct zone *zone)
{
	free(zone->state);
	free(zone->rhs);
	free(zone->forcing);
	free(zone->derived);
	zone->state = zone->rhs = zone->forcing = zone->derived = NULL;
}
