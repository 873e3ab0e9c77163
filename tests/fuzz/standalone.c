/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Runs a fuzz target over the files of the directories that are its arguments, as a plain test. A
 * directory that is missing or has no files is a failure: the test would test nothing.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The caller frees the bytes. */
static uint8_t *read_file(int fd, size_t *size)
{
	struct stat status;
	uint8_t *data;
	ssize_t n;

	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
		return NULL;
	/* Exactly as large as the input, so that a sanitizer sees what reads behind it. */
	data = malloc(status.st_size > 0 ? (size_t)status.st_size : 1);
	n = data ? read(fd, data, (size_t)status.st_size) : -1;
	if (n != status.st_size) {
		free(data);
		return NULL;
	}
	*size = (size_t)n;
	return data;
}

/* 1 when the entry was run, 0 when it is nothing to run, -1 when it cannot be read. */
static int run_entry(DIR *directory, const char *name)
{
	uint8_t *data;
	size_t size = 0;
	int fd;

	if (name[0] == '.')
		return 0;
	fd = openat(dirfd(directory), name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	data = read_file(fd, &size);
	close(fd);
	if (!data)
		return -1;
	fprintf(stderr, "%s: %zu bytes\n", name, size);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
	return 1;
}

static int run_directory(const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	int n = 0, r = 0;

	if (!directory) {
		perror(path);
		return -1;
	}
	while (r >= 0 && (entry = readdir(directory))) {
		r = run_entry(directory, entry->d_name);
		if (r < 0)
			fprintf(stderr, "%s/%s: cannot be read\n", path, entry->d_name);
		else
			n += r;
	}
	closedir(directory);
	if (r >= 0 && n == 0)
		fprintf(stderr, "%s: empty\n", path);
	return r < 0 || n == 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: %s DIRECTORY...\n", argv[0]);
		return 2;
	}
	for (int i = 1; i < argc; i++)
		if (run_directory(argv[i]) < 0)
			return 1;
	return 0;
}
