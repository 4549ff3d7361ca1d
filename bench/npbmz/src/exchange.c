#include "exchange.h"

#include <mpi.h>
#include <stdlib.h>

/* One face to be set. */
struct transfer {
	struct zone *from, *to; /* NULL if on another rank */
	int from_rank, to_rank;
	int direction;          /* across the face */
	int from_plane;         /* the plane that is copied, and to where */
	int to_plane;
	int width, height;      /* interior points along the face */
	double *buffer;         /* between packing and unpacking; part of a message if ranks differ */
};

/* All that goes to and comes from another rank: one message each way per step. */
struct message {
	size_t outgoing_values, incoming_values;
	double *outgoing, *incoming;
};

struct exchange {
	int rank, ranks;
	struct transfer *transfers;
	int count;
	struct message *messages; /* by rank; the own one is for faces that stay here */
	double *memory;
	MPI_Request *requests;
	MPI_Status *statuses;
};

static struct zone *find_zone(struct zone *zones, int count, int id)
{
	for (int z = 0; z < count; z++) {
		if (zones[z].id == id)
			return &zones[z];
	}
	return NULL;
}

static size_t transfer_values(const struct transfer *t)
{
	return (size_t)t->width * (size_t)t->height * VARIABLES;
}

/*
 * Lists the transfers that this rank has part in, in an order that is the same
 * on all ranks, so that both ends of a message agree on what is where in it.
 */
static void list_transfers(struct exchange *exchange, const struct partition *partition, struct zone *zones, int count)
{
	for (int id = 0; id < partition->count; id++) {
		for (int side = WEST; side < SIDES; side++) {
			const int source = zone_neighbour(partition, id, (enum side)side);
			const int direction = side == WEST || side == EAST ? X : Y;
			const bool low = side == WEST || side == SOUTH;
			struct transfer t = {
				.from = find_zone(zones, count, source),
				.to = find_zone(zones, count, id),
				.from_rank = partition->owner[source],
				.to_rank = partition->owner[id],
				.direction = direction,
				.from_plane = low ? zone_size(partition, source, direction) - 2 : 1,
				.to_plane = low ? 0 : zone_size(partition, id, direction) - 1,
				.width = zone_size(partition, id, direction == X ? Y : X) - 2,
				.height = partition->height - 2,
			};
			if (t.from || t.to)
				exchange->transfers[exchange->count++] = t;
		}
	}
}

/* Gives each message its part of the memory, and each transfer its part of a message. */
static bool place_buffers(struct exchange *exchange)
{
	size_t values = 0;
	for (int i = 0; i < exchange->count; i++) {
		const struct transfer *t = &exchange->transfers[i];
		if (t->from)
			exchange->messages[t->to_rank].outgoing_values += transfer_values(t);
		else
			exchange->messages[t->from_rank].incoming_values += transfer_values(t);
		values += transfer_values(t);
	}
	exchange->memory = malloc(values * sizeof *exchange->memory);
	if (!exchange->memory)
		return false;
	double *next = exchange->memory;
	for (int r = 0; r < exchange->ranks; r++) {
		struct message *m = &exchange->messages[r];
		m->outgoing = next;
		m->incoming = m->outgoing + m->outgoing_values;
		next = m->incoming + m->incoming_values;
		m->outgoing_values = m->incoming_values = 0;
	}
	for (int i = 0; i < exchange->count; i++) {
		struct transfer *t = &exchange->transfers[i];
		struct message *m = &exchange->messages[t->from ? t->to_rank : t->from_rank];
		if (t->from) {
			t->buffer = m->outgoing + m->outgoing_values;
			m->outgoing_values += transfer_values(t);
		} else {
			t->buffer = m->incoming + m->incoming_values;
			m->incoming_values += transfer_values(t);
		}
	}
	return true;
}

struct exchange *make_exchange(const struct partition *partition, struct zone *zones, int count, int rank)
{
	struct exchange *exchange = calloc(1, sizeof *exchange);
	if (!exchange)
		return NULL;
	exchange->rank = rank;
	exchange->ranks = partition->ranks;
	exchange->transfers = calloc((size_t)partition->count * SIDES, sizeof *exchange->transfers);
	exchange->messages = calloc((size_t)partition->ranks, sizeof *exchange->messages);
	exchange->requests = calloc((size_t)partition->ranks * 2, sizeof *exchange->requests);
	exchange->statuses = calloc((size_t)partition->ranks * 2, sizeof *exchange->statuses);
	if (!exchange->transfers || !exchange->messages || !exchange->requests || !exchange->statuses) {
		free_exchange(exchange);
		return NULL;
	}
	list_transfers(exchange, partition, zones, count);
	if (!place_buffers(exchange)) {
		free_exchange(exchange);
		return NULL;
	}
	return exchange;
}

void free_exchange(struct exchange *exchange)
{
	if (!exchange)
		return;
	free(exchange->transfers);
	free(exchange->messages);
	free(exchange->requests);
	free(exchange->statuses);
	free(exchange->memory);
	free(exchange);
}

/* A variable of the first interior point of a plane in layer k, and the way to the next point. */
static double *plane_row(const struct zone *zone, int direction, int plane, int k, int m, ptrdiff_t *step)
{
	*step = direction == X ? stride(zone, VARIABLES, Y) : 1;
	return zone->state + row(zone, VARIABLES, direction == X ? 1 : plane, k) + (direction == X ? plane : 1) +
	       m * zone->n[X];
}

static void pack(const struct transfer *t)
{
	double *restrict buffer = t->buffer;
	for (int k = 1; k <= t->height; k++) {
		for (int m = 0; m < VARIABLES; m++) {
			ptrdiff_t step;
			const double *restrict from = plane_row(t->from, t->direction, t->from_plane, k, m, &step);
			for (int i = 0; i < t->width; i++)
				*buffer++ = from[i * step];
		}
	}
}

static void unpack(const struct transfer *t)
{
	const double *restrict buffer = t->buffer;
	for (int k = 1; k <= t->height; k++) {
		for (int m = 0; m < VARIABLES; m++) {
			ptrdiff_t step;
			double *restrict to = plane_row(t->to, t->direction, t->to_plane, k, m, &step);
			for (int i = 0; i < t->width; i++)
				to[i * step] = *buffer++;
		}
	}
}

void exchange_faces(struct exchange *exchange)
{
	int requests = 0;
	for (int r = 0; r < exchange->ranks; r++) {
		const struct message *m = &exchange->messages[r];
		if (r != exchange->rank && m->incoming_values > 0)
			MPI_Irecv(m->incoming, (int)m->incoming_values, MPI_DOUBLE, r, 0, MPI_COMM_WORLD,
				  &exchange->requests[requests++]);
	}
#pragma omp parallel for schedule(static)
	for (int i = 0; i < exchange->count; i++) {
		if (exchange->transfers[i].from)
			pack(&exchange->transfers[i]);
	}
	for (int r = 0; r < exchange->ranks; r++) {
		const struct message *m = &exchange->messages[r];
		if (r != exchange->rank && m->outgoing_values > 0)
			MPI_Isend(m->outgoing, (int)m->outgoing_values, MPI_DOUBLE, r, 0, MPI_COMM_WORLD,
				  &exchange->requests[requests++]);
	}
	MPI_Waitall(requests, exchange->requests, exchange->statuses);
#pragma omp parallel for schedule(static)
	for (int i = 0; i < exchange->count; i++) {
		if (exchange->transfers[i].to)
			unpack(&exchange->transfers[i]);
	}
}
