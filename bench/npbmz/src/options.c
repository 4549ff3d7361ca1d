#include "options.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "problem.h"

static bool parse_count(const char *text, int *count)
{
	char *end;
	errno = 0;
	long value = strtol(text, &end, 10);
	if (errno || end == text || *end || value < 1 || value > INT_MAX)
		return false;
	*count = (int)value;
	return true;
}

bool parse_options(int argc, char **argv, struct options *options, char *error, size_t size)
{
	*options = (struct options){ 0 };
	for (int i = 1; i < argc; i++) {
		const char *argument = argv[i];
		if (strcmp(argument, "--help") == 0) {
			options->help = true;
			return true;
		} else if (strcmp(argument, "--json") == 0) {
			options->json = true;
		} else if (strcmp(argument, "--iterations") == 0) {
			const char *value = i + 1 < argc ? argv[++i] : "";
			if (!parse_count(value, &options->iterations)) {
				snprintf(error, size, "--iterations needs a number of time steps from 1 on, not '%s'", value);
				return false;
			}
		} else if (argument[0] == '-') {
			snprintf(error, size, "unknown option '%s'; see --help", argument);
			return false;
		} else if (options->class) {
			snprintf(error, size, "one class is enough, '%s' is too much", argument);
			return false;
		} else if (strlen(argument) != 1 || !strchr(CLASSES, argument[0])) {
			snprintf(error, size, "unknown class '%s'; classes are S, W, A, B and C", argument);
			return false;
		} else {
			options->class = argument[0];
		}
	}
	if (!options->class)
		snprintf(error, size, "which class? Give S, W, A, B or C as first argument; see --help");
	return options->class;
}

void print_help(const char *program)
{
	printf("Usage: %s CLASS [--iterations N] [--json]\n"
	       "\n"
	       "CLASS is S, W, A, B or C, from the smallest problem to the largest.\n"
	       "\n"
	       "  --iterations N  run N time steps instead of those of the class; results\n"
	       "                  are then not verified, unless N is the same\n"
	       "  --json          print the results once more, as one line of JSON, at the end\n"
	       "  --help          print this and exit\n"
	       "\n"
	       "Run it with mpirun and at most as many ranks as there are zones;\n"
	       "OMP_NUM_THREADS is the number of threads in each rank.\n"
	       "\n"
	       "Exit code 0: verified; 1: verification failed; 2: bad arguments;\n"
	       "3: ran, but there was nothing to verify the results by; 4: out of memory.\n",
	       program);
}
