// SPDX-License-Identifier: LGPL-2.1-or-later
/* The state as JSON: modules with their reportable pages in runs, and sums by class. */
#include "guest-agent/dump.h"
#include "guest-agent/json.h"
#include "pagefusion-version.h"
#include <errno.h>
#include <inttypes.h>

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

	while (end < file->n && pf_file_page_reportable(&pages[end]) &&
		pages[end].file_page == pages[end - 1].file_page + 1 &&
		pages[end].gfn == pages[end - 1].gfn + 1u)
		end++;
	return end;
}

static void write_run(
	FILE *out, const PfFilePage *pages, size_t n, bool with_digests, const char *comma)
{
	fprintf(out, "%s{\"file_page\":%" PRIu32 ",\"gfn\":%" PRIu64 ",\"pages\":%zu", comma,
		pages[0].file_page, (uint64_t)pages[0].gfn, n);
	for (size_t i = 0; with_digests && i < n; i++) {
		fputs(i == 0 ? ",\"digests\":[" : ",", out);
		write_hex(out, pages[i].digest.bytes, PF_DIGEST_SIZE);
	}
	fputs(with_digests ? "]}" : "}", out);
}

static void write_runs(FILE *out, const PfFile *file, bool with_digests)
{
	const char *comma = "";

	for (size_t i = 0, end; i < file->n; i = end) {
		end = i + 1;
		if (!pf_file_page_reportable(&file->pages[i]))
			continue;
		end = run_end(file, i);
		write_run(out, &file->pages[i], end - i, with_digests, comma);
		comma = ",";
	}
}

static void write_module(FILE *out, const PfFile *file, bool with_digests)
{
	fputs("{\"name\":", out);
	pf_json_string(out, file->name);
	fprintf(out, ",\"class\":\"%s\",\"build_id\":", pf_page_class_name(pf_file_class(file)));
	write_hex(out, file->build_id, file->build_id_size);
	fprintf(out, ",\"file_pages\":%" PRIu64 ",\"runs\":[", file->n_pages);
	write_runs(out, file, with_digests);
	fputs("]}", out);
}

static void write_modules(FILE *out, const PfState *state, bool with_digests)
{
	const char *comma = "\n";

	fputs(",\"modules\":[", out);
	for (size_t i = 0; i < state->n; i++) {
		if (state->files[i]->n_reportable == 0)
			continue;
		fputs(comma, out);
		write_module(out, state->files[i], with_digests);
		comma = ",\n";
	}
	fputs("\n]", out);
}

static void write_counts(FILE *out, const PfState *state)
{
	PfStateCount count;
	uint64_t n_files = 0, n_pages = 0;

	pf_state_count(state, &count);
	fputs(",\"classes\":{", out);
	for (size_t i = 0; i < PF_N_CLASSES; i++) {
		fprintf(out, "%s\"%s\":{\"pages\":%" PRIu64 ",\"modules_count\":%" PRIu64 "}",
			i ? "," : "", pf_page_class_name((PfPageClass)i), count.classes[i].n_pages,
			count.classes[i].n_files);
		n_files += count.classes[i].n_files;
		n_pages += count.classes[i].n_pages;
	}
	fprintf(out,
		"},\"unsteady_pages\":%" PRIu64 ",\"pages\":%" PRIu64 ",\"modules_count\":%" PRIu64,
		count.n_unsteady_pages, n_pages, n_files);
}

static void write_facts(FILE *out, const PfFacts *facts)
{
	fprintf(out, "{\"agent_version\":\"%s\",\"page_size\":%lu,\"boot_id\":\"%s\",\"ram\":[",
		PF_VERSION, PF_PAGE_SIZE, facts->boot_id_text);
	for (size_t i = 0; i < facts->ram.n; i++)
		fprintf(out, "%s{\"first_gfn\":%" PRIu64 ",\"pages\":%" PRIu64 "}", i ? "," : "",
			facts->ram.ranges[i].first.v, facts->ram.ranges[i].n_pages);
	fputs("]", out);
}

int pf_dump_write(FILE *out, const PfFacts *facts, const PfState *state, const PfScanStats *stats,
	bool with_digests)
{
	write_facts(out, facts);
	write_modules(out, state, with_digests);
	write_counts(out, state);
	fprintf(out, ",\"hashed_pages\":%" PRIu64 ",\"scan_ms\":%" PRIu64 "}\n", stats->n_hashed,
		stats->duration_ms);
	return fflush(out) == 0 && !ferror(out) ? 0 : -EIO;
}
