// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * The two forms of the status. The JSON has each number as it is, times in seconds since 1970; keys
 * are only ever added. The text says first what a person would ask first: does the host hear of this
 * guest, and if not what is to be done; then what was found, and what it cost.
 */
#include "common/text.h"
#include "guest-agent/config.h"
#include "guest-agent/json.h"
#include "guest-agent/status.h"
#include "pagefusion-version.h"
#include <inttypes.h>
#include <string.h>

#define MAX_SHOWN 512 /* bytes of a path */

static const char *bool_name(bool value)
{
	return value ? "true" : "false";
}

/* --- JSON --- */

static void write_json_string(FILE *out, const char *name, const char *text)
{
	char clean[MAX_SHOWN];

	pf_text_clean(clean, sizeof(clean), text);
	fprintf(out, "\"%s\":", name);
	pf_json_string(out, clean);
}

static void write_json_class(FILE *out, const PfPassStatus *pass)
{
	fprintf(out, "{\"on\":%s,", bool_name(pass->on));
	if (pass->impossible)
		write_json_string(out, "impossible", pass->impossible);
	else
		fputs("\"impossible\":null", out);
	fprintf(out,
		",\"passes\":%" PRIu64 ",\"ended\":%" PRId64 ",\"duration_ms\":%" PRIu64
		",\"cpu_us\":%" PRIu64 ",\"hashed_pages\":%" PRIu64 ",\"files\":%" PRIu64
		",\"pages\":%" PRIu64 "}",
		pass->n_passes, (int64_t)pass->ended, pass->duration_ms, pass->cpu_us,
		pass->n_hashed, pass->n_files, pass->n_pages);
}

void pf_status_write_json(FILE *out, const PfAgentStatus *status, time_t now)
{
	fprintf(out, "{\"version\":\"%s\",\"pid\":%d,\"now\":%" PRId64 ",\"started\":%" PRId64 ",",
		PF_VERSION, (int)status->pid, (int64_t)now, (int64_t)status->started);
	write_json_string(out, "port", status->port);
	fprintf(out,
		",\"connected\":%s,\"session\":%s,\"since\":%" PRId64 ",\"sessions\":%" PRIu64
		",\"bytes_sent\":%" PRIu64 ",\"frames_sent\":%" PRIu64
		",\"frames_acknowledged\":%" PRIu64,
		bool_name(status->connected), bool_name(status->session), (int64_t)status->since,
		status->n_sessions, status->bytes_sent, status->frames_sent,
		status->frames_acknowledged);
	fprintf(out,
		",\"process_events\":%s,\"new_processes\":%" PRIu64 ",\"hashed_pages\":%" PRIu64
		",\"left_behind\":%" PRIu64 ",\"left_out\":%" PRIu64 ",\"cpu_us\":%" PRIu64
		",\"rss_anon_kib\":%" PRIu64 ",\"rss_file_kib\":%" PRIu64 ",\"classes\":{",
		bool_name(status->process_events), status->n_new_processes, status->n_hashed,
		status->n_left_behind, status->n_left_out, status->cpu_us, status->rss_anon_kib,
		status->rss_file_kib);
	for (int i = 0; i < PF_N_CLASSES; i++) {
		fprintf(out, "%s\"%s\":", i ? "," : "", pf_page_class_name((PfPageClass)i));
		write_json_class(out, &status->classes[i]);
	}
	fputs("}}\n", out);
}

/* --- text --- */

static double mib_of_pages(uint64_t n_pages)
{
	return (double)n_pages * PF_PAGE_SIZE / (1 << 20);
}

/* Seconds since then; none when the clock was set back. */
static uint64_t age(time_t then, time_t now)
{
	return now > then ? (uint64_t)(now - then) : 0;
}

static void format_seconds(char *text, size_t size, uint64_t s)
{
	if (s < 60)
		snprintf(text, size, "%" PRIu64 " s", s);
	else if (s < 3600)
		snprintf(text, size, "%" PRIu64 " min", s / 60);
	else if (s < 86400)
		snprintf(text, size, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
	else
		snprintf(text, size, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
}

/* "DATE (AGE)", with `ago` behind the age. */
static void write_time(FILE *out, time_t then, time_t now, const char *ago)
{
	char date[64] = "", passed[48];
	struct tm local;

	if (localtime_r(&then, &local))
		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S %Z", &local);
	format_seconds(passed, sizeof(passed), age(then, now));
	fprintf(out, "%s (%s%s)", date, passed, ago);
}

static void write_host(FILE *out, const PfAgentStatus *status, time_t now)
{
	fputs("    Host: ", out);
	if (status->session) {
		fputs("listens, since ", out);
		write_time(out, status->since, now, "");
	} else if (status->port[0] == '\0') {
		fputs("cannot be reached: this VM has no port for it. Turn page fusion on for the VM\n"
		      "          on the host while the VM is shut off:\n"
		      "          pagefusionctl modifyvm VM --pagefusion on",
			out);
	} else if (!status->connected) {
		fputs("does not listen: start pagefusiond there (systemctl start pagefusiond)",
			out);
	} else {
		fputs("has opened the port and not said hello yet. If that lasts, its log tells why:\n"
		      "          journalctl -u pagefusiond",
			out);
	}
	if (!status->session && status->since) {
		fputs(";\n          the last session ended ", out);
		write_time(out, status->since, now, " ago");
	}
	fputc('\n', out);
}

static void write_found(FILE *out, const PfAgentStatus *status)
{
	uint64_t n_pages = 0, n_files = 0;

	for (int i = 0; i < PF_N_CLASSES; i++) {
		n_pages += status->classes[i].n_pages;
		n_files += status->classes[i].n_files;
	}
	fprintf(out, "   Found: %" PRIu64 " pages (%.1f MiB) of %" PRIu64 " files", n_pages,
		mib_of_pages(n_pages), n_files);
	fprintf(out, "; %.1f MiB sent in %" PRIu64 " session%s\n",
		(double)status->bytes_sent / (1 << 20), status->n_sessions,
		status->n_sessions == 1 ? "" : "s");
	if (!status->session)
		fputs("Programs: are looked at while the host listens\n", out);
	else if (status->process_events)
		fprintf(out, "Programs: are looked at when they start; %" PRIu64 " so far\n",
			status->n_new_processes);
	else
		fputs("Programs: are found by the next pass only: the kernel does not tell of their"
		      " start\n",
			out);
}

static void write_cost(FILE *out, const PfAgentStatus *status, time_t now)
{
	double cpu_s = (double)status->cpu_us / 1e6;
	uint64_t seconds = age(status->started, now);

	fputs("    Cost: ", out);
	if (seconds > 0)
		fprintf(out, "%.2f %% of a CPU ", cpu_s / (double)seconds * 100);
	fprintf(out,
		"(%.2f s; %" PRIu64 " pages hashed), %.1f MiB of memory, %.1f MiB of files in it\n",
		cpu_s, status->n_hashed, (double)status->rss_anon_kib / 1024,
		(double)status->rss_file_kib / 1024);
	if (status->n_left_behind)
		fprintf(out, " Trouble: %" PRIu64 " files did not answer and were left out\n",
			status->n_left_behind);
	if (status->n_left_out)
		fprintf(out,
			" Trouble: %" PRIu64
			" files are left out, as their owners have too many others\n",
			status->n_left_out);
}

static void write_class(FILE *out, const char *name, const PfPassStatus *pass, time_t now)
{
	char ago[48];

	fprintf(out, "%-9s", name);
	if (!pass->on) {
		fputs("off\n", out);
	} else if (pass->impossible) {
		char clean[MAX_SHOWN];

		pf_text_clean(clean, sizeof(clean), pass->impossible);
		fprintf(out, "not possible here: %s\n", clean);
	} else if (pass->n_passes == 0) {
		fputs("not looked at yet\n", out);
	} else {
		format_seconds(ago, sizeof(ago), age(pass->ended, now));
		fprintf(out,
			"%8" PRIu64 " %8.1f %7" PRIu64 " %11s ago %6" PRIu64 " ms %6" PRIu64
			" ms %8" PRIu64 "\n",
			pass->n_pages, mib_of_pages(pass->n_pages), pass->n_files, ago,
			pass->duration_ms, pass->cpu_us / 1000, pass->n_hashed);
	}
}

void pf_status_write_text(FILE *out, const PfAgentStatus *status, time_t now)
{
	char port[MAX_SHOWN];

	fprintf(out, "pagefusion-agent %s (process %d), running since ", PF_VERSION,
		(int)status->pid);
	write_time(out, status->started, now, "");
	fputc('\n', out);
	write_host(out, status, now);
	pf_text_clean(port, sizeof(port), status->port);
	fprintf(out, "    Port: %s\n", port[0] ? port : "none");
	write_found(out, status);
	write_cost(out, status, now);
	fprintf(out, "\n%-9s%8s %8s %7s %15s %9s %9s %8s\n", "class", "pages", "MiB", "files",
		"last pass", "took", "CPU", "hashed");
	for (int i = 0; i < PF_N_CLASSES; i++)
		write_class(out, pf_page_class_name((PfPageClass)i), &status->classes[i], now);
}
