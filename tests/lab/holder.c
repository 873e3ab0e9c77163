// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * A program for inside guests, linked statically so that it runs in any of them: maps files, says
 * so with a line that holds its process id, and keeps them mapped until it is killed.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096

static const char usage[] =
	"Usage: lab-holder files FILE...       maps files read-only, every page of them present\n"
	"       lab-holder cut FILE            the same, and then cuts the file to half its size\n"
	"       lab-holder pieces COUNT FILE   maps pages of the file so often, each by itself\n";

static int failed(const char *what, const char *name)
{
	fprintf(stderr, "lab-holder: %s: ", name);
	perror(what);
	return 1;
}

static void touch(const uint8_t *at, off_t size)
{
	volatile uint8_t byte;

	for (off_t offset = 0; offset < size; offset += PAGE)
		byte = at[offset];
	(void)byte;
}

static int hold_file(const char *name, bool cut)
{
	int fd = open(name, cut ? O_RDWR : O_RDONLY);
	struct stat info;
	void *at;

	if (fd < 0 || fstat(fd, &info) < 0)
		return failed("open", name);
	at = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		return failed("mmap", name);
	touch(at, info.st_size);
	if (cut && ftruncate(fd, info.st_size / 2) < 0)
		return failed("ftruncate", name);
	close(fd);
	return 0;
}

/* Pages of the file in turn, so that no two neighbours are one mapping. */
static int hold_pieces(const char *count, const char *name)
{
	long wanted = strtol(count, NULL, 10);
	int fd = open(name, O_RDONLY);

	if (fd < 0)
		return failed("open", name);
	for (long i = 0; i < wanted; i++) {
		off_t page = i % 2 * 2;
		if (mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, page * PAGE) == MAP_FAILED)
			return failed("mmap", name);
	}
	close(fd);
	return 0;
}

static int hold(char **arguments)
{
	int r = 0;

	if (strcmp(arguments[0], "pieces") == 0 && arguments[1] && arguments[2])
		return hold_pieces(arguments[1], arguments[2]);
	if (strcmp(arguments[0], "cut") == 0 && arguments[1])
		return hold_file(arguments[1], true);
	if (strcmp(arguments[0], "files") != 0) {
		fputs(usage, stderr);
		return 2;
	}
	for (char **name = arguments + 1; *name && r == 0; name++)
		r = hold_file(*name, false);
	return r;
}

int main(int argc, char **argv)
{
	int r = 2;

	if (argc < 2)
		fputs(usage, stderr);
	else
		r = hold(argv + 1);
	if (r != 0)
		return r;
	printf("%d\n", (int)getpid());
	fflush(stdout);
	for (;;)
		pause();
}
