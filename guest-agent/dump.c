// SPDX-License-Identifier: LGPL-2.1-or-later
/* The state as JSON: modules with their resident pages in runs, the same runs that hints would
 * have. */
#include "guest-agent/dump.h"
#include "pagefusion-version.h"
#include <errno.h>
#include <inttypes.h>

void pf_dump_string(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text; text++) {
		uint8_t c = (uint8_t)*text;

		if (c == '"' || c == '\\')
			fprintf(out, "\\%c", c);
		else if (c < 0x20)
			fprintf(out, "\\u%04x", c);
		else
			fputc(c, out);
	}
	fputc('"', out);
}

static void write_hex(FILE *out, const uint8_t *bytes, size_t size)
{
	fputc('"', out);
	for (size_t i = 0; i < size; i++)
		fprintf(out, "%02x", bytes[i]);
	fputc('"', out);
}

/* Index behind the run that begins with pages[first]. */
static size_t run_end(const PfFile *file, size_t first)
{
	const PfFilePage *pages = file->pages;
	size_t end = first + 1;

	while (end < file->n && pages[end].gfn.v &&
		pages[end].file_page == pages[end - 1].file_page + 1 &&
		pages[end].gfn.v == pages[end - 1].gfn.v + 1)
		end++;
	return end;
}

static void write_runs(FILE *out, const PfFile *file, bool with_digests)
{
	const char *comma = "";

	for (size_t i = 0; i < file->n;) {
		size_t end = i + 1;

		if (file->pages[i].gfn.v) {
			end = run_end(file, i);
			fprintf(out,
				"%s{\"file_page\":%" PRIu32 ",\"gfn\":%" PRIu64 ",\"pages\":%zu",
				comma, file->pages[i].file_page, file->pages[i].gfn.v, end - i);
			comma = ",";
			for (size_t k = i; with_digests && k < end; k++) {
				fputs(k == i ? ",\"digests\":[" : ",", out);
				write_hex(out, file->pages[k].digest.bytes, PF_DIGEST_SIZE);
			}
			fputs(with_digests ? "]}" : "}", out);
		}
		i = end;
	}
}

static void write_module(FILE *out, const PfFile *file, bool with_digests)
{
	fputs("{\"name\":", out);
	pf_dump_string(out, file->name);
	fputs(",\"build_id\":", out);
	write_hex(out, file->build_id, file->build_id_size);
	fprintf(out, ",\"file_pages\":%" PRIu64 ",\"runs\":[", file->n_pages);
	write_runs(out, file, with_digests);
	fputs("]}", out);
}

static void write_facts(FILE *out, const PfFacts *facts)
{
	fprintf(out, "{\"agent_version\":\"%s\",\"page_size\":%lu,\"boot_id\":\"%s\",\"ram\":[",
		PF_VERSION, PF_PAGE_SIZE, facts->boot_id_text);
	for (size_t i = 0; i < facts->ram.n; i++)
		fprintf(out, "%s{\"first_gfn\":%" PRIu64 ",\"pages\":%" PRIu64 "}", i ? "," : "",
			facts->ram.ranges[i].first.v, facts->ram.ranges[i].n_pages);
}

int pf_dump_write(FILE *out, const PfFacts *facts, const PfState *state, const PfScanStats *stats,
	bool with_digests)
{
	uint64_t n_pages = 0, n_modules = 0;

	write_facts(out, facts);
	fputs("],\"modules\":[", out);
	for (size_t i = 0; i < state->n; i++) {
		if (state->files[i]->n_resident == 0)
			continue;
		fputs(n_modules++ ? ",\n" : "\n", out);
		write_module(out, state->files[i], with_digests);
		n_pages += state->files[i]->n_resident;
	}
	fprintf(out,
		"\n],\"pages\":%" PRIu64 ",\"modules_count\":%" PRIu64 ",\"hashed_pages\":%" PRIu64
		",\"scan_ms\":%" PRIu64 "}\n",
		n_pages, n_modules, stats->n_hashed, stats->duration_ms);
	return fflush(out) == 0 && !ferror(out) ? 0 : -EIO;
}
