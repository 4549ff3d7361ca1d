/* The command line. */
#ifndef NPBMZ_OPTIONS_H
#define NPBMZ_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct options {
	char class;     /* one of CLASSES */
	int iterations; /* 0: those of the class */
	bool json;
	bool help;
};

/* Reads the command line. False if it is bad, and then error says why. */
bool parse_options(int argc, char **argv, struct options *options, char *error, size_t size);

/* Prints the text of --help. */
void print_help(const char *program);

#endif
