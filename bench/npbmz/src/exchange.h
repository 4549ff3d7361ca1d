/* Coupling of the zones: faces take what the neighbour has one plane inside. */
#ifndef NPBMZ_EXCHANGE_H
#define NPBMZ_EXCHANGE_H

#include "field.h"
#include "zones.h"

struct exchange;

/*
 * Plans the transfers of this rank. zones are its own, in the order of their
 * ids; they must stay where they are. NULL if there is no memory.
 */
struct exchange *make_exchange(const struct partition *partition, struct zone *zones, int count, int rank);
void free_exchange(struct exchange *exchange);

/*
 * Sets the interior points of all x and y faces of this rank's zones, equation
 * (19). Must be called by all ranks.
 */
void exchange_faces(struct exchange *exchange);

#endif
