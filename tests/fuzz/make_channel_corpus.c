/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writes the seeds of corpus/frame and corpus/session into the directory that is its argument:
 * conversations in the form of records.h. Run it again after a change of agent.proto:
 *
 *   make_channel_corpus tests/fuzz/corpus
 */
#include "common/frame.h"
#include "proto/agent.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* As in fuzz_session.c. */
enum { RAW, FRAME, MESSAGE, TORN, OUTPUT, DRAIN, OPEN };

static FILE *file;

static void begin_file(const char *directory, const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "wb");
	if (!file) {
		perror(path);
		exit(1);
	}
}

static void end_file(void)
{
	if (fclose(file) != 0) {
		perror("write");
		exit(1);
	}
}

static void put(int operation, const void *bytes, size_t size)
{
	fputc(operation, file);
	fputc((int)(size & 0xff), file);
	fputc((int)(size >> 8), file);
	fwrite(bytes, 1, size, file);
}

static void put_message(int operation, const Pagefusion__AgentMessage *message)
{
	uint8_t bytes[4096];
	size_t size = pagefusion__agent_message__get_packed_size(message);

	if (size > sizeof(bytes))
		abort();
	pagefusion__agent_message__pack(message, bytes);
	put(operation, bytes, size);
}

static void put_hello(uint32_t page_size)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__AgentHello hello = PAGEFUSION__AGENT_HELLO__INIT;
	Pagefusion__RamRange low = PAGEFUSION__RAM_RANGE__INIT, high = low;
	Pagefusion__RamRange *ram[] = {&low, &high};
	static uint8_t boot_id[16] = "0123456789abcdef";

	low.first_gfn = 1;
	low.n_pages = 158;
	high.first_gfn = 256;
	high.n_pages = 130784;
	hello.protocol = 1;
	hello.boot_id = (ProtobufCBinaryData){sizeof(boot_id), boot_id};
	hello.agent_version = (char *)"0.1.0";
	hello.kernel = (char *)"6.1.0-18-cloud-amd64";
	hello.page_size = page_size;
	hello.n_ram = 2;
	hello.ram = ram;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HELLO;
	message.hello = &hello;
	put_message(MESSAGE, &message);
}

static void put_module(uint32_t id, size_t build_id_size, const char *name, uint64_t n_pages)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Module module = PAGEFUSION__MODULE__INIT;
	static uint8_t build_id[65];

	module.id = id;
	module.build_id = (ProtobufCBinaryData){build_id_size, build_id};
	module.name = (char *)name;
	module.n_pages = n_pages;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_MODULE;
	message.module = &module;
	put_message(MESSAGE, &message);
}

static void put_hints(int operation, uint32_t module_id, uint64_t file_page, uint64_t gfn)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Hints hints = PAGEFUSION__HINTS__INIT;
	Pagefusion__Run first = PAGEFUSION__RUN__INIT, second = first;
	Pagefusion__Run *runs[] = {&first, &second};
	static uint8_t digests[3 * 32];

	first.file_page = file_page;
	first.gfn = gfn;
	first.digests = (ProtobufCBinaryData){sizeof(digests), digests};
	second.file_page = file_page + 3;
	second.gfn = gfn + 100;
	second.digests = (ProtobufCBinaryData){32, digests};
	hints.module_id = module_id;
	hints.n_runs = 2;
	hints.runs = runs;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_HINTS;
	message.hints = &hints;
	put_message(operation, &message);
}

static void put_withdrawn(uint32_t module_id, size_t n, uint64_t first_page, uint64_t n_pages)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Withdrawn withdrawn = PAGEFUSION__WITHDRAWN__INIT;
	Pagefusion__PageRange range = PAGEFUSION__PAGE_RANGE__INIT, *ranges[] = {&range};

	range.first_page = first_page;
	range.n_pages = n_pages;
	withdrawn.module_id = module_id;
	withdrawn.n_pages = n;
	withdrawn.pages = ranges;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_WITHDRAWN;
	message.withdrawn = &withdrawn;
	put_message(MESSAGE, &message);
}

static void put_report_end(void)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__ReportEnd end = PAGEFUSION__REPORT_END__INIT;

	end.n_modules = 1;
	end.n_pages = 4;
	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_REPORT_END;
	message.report_end = &end;
	put_message(MESSAGE, &message);
}

static void put_knock(int operation)
{
	Pagefusion__AgentMessage message = PAGEFUSION__AGENT_MESSAGE__INIT;
	Pagefusion__Knock knock = PAGEFUSION__KNOCK__INIT;
	uint8_t frame[64];
	size_t size;

	message.body_case = PAGEFUSION__AGENT_MESSAGE__BODY_KNOCK;
	message.knock = &knock;
	size = pagefusion__agent_message__pack(&message, frame + PF_FRAME_HEADER_SIZE);
	if (pf_frame_write_header(frame, frame + PF_FRAME_HEADER_SIZE, size) != PF_FRAME_OK)
		abort();
	if (operation == RAW)
		put(RAW, frame, PF_FRAME_HEADER_SIZE + size);
	else
		put(operation, frame + PF_FRAME_HEADER_SIZE, size);
}

static void put_report(void)
{
	put(DRAIN, "", 0);
	put_hello(4096);
	put_module(1, 20, "libc.so.6", 480);
	put_hints(MESSAGE, 1, 10, 1000);
	put_withdrawn(1, 1, 11, 2);
	put_report_end();
}

static void make_session_seeds(void)
{
	begin_file("session", "report");
	put_report();
	end_file();

	begin_file("session", "refused");
	put(DRAIN, "", 0);
	put_report_end();
	put_hello(4096);
	put_module(65536, 20, "id", 1);
	put_module(1, 65, "build-id", 1);
	put_module(2, 0, "caf\xc3\xa9\x1b[2J\xff\xe2\x80\xae", 100);
	put_hints(MESSAGE, 2, 98, 256);
	put_hints(MESSAGE, 2, 0, 158);
	put_hints(MESSAGE, 3, 0, 256);
	put_withdrawn(2, 1, 99, 2);
	put_withdrawn(2, 0, 0, 0);
	put_hints(MESSAGE, 2, 0, 256);
	end_file();

	begin_file("session", "reboot");
	put_report();
	put_hints(TORN, 1, 20, 2000);
	put_knock(RAW);
	put_report();
	put(OPEN, "", 0);
	put(RAW, "PFG1 rubbish", 12);
	put_report();
	put_knock(FRAME);
	put(OUTPUT, "12345", 5);
	put_knock(FRAME);
	put_report();
	end_file();

	begin_file("session", "page-size");
	put_hello(65536);
	put_module(1, 20, "libc.so.6", 480);
	end_file();

	begin_file("session", "flood");
	put_hello(4096);
	for (int i = 0; i < 20; i++)
		put_report_end();
	put_hello(4096);
	end_file();
}

static void make_frame_seeds(void)
{
	static const uint8_t false_header[] = {'P', 'F', 'G', '1', 40, 0, 0, 0, 1, 2, 3, 4};
	static const uint8_t largest[] = {'P', 'F', 'G', '1', 0xf4, 0xff, 0x0f, 0, 1, 2, 3, 4};
	static const uint8_t empty[] = {'P', 'F', 'G', '1', 0, 0, 0, 0, 0, 0, 0, 0};

	begin_file("frame", "plain");
	put(1, "one", 3);
	put(3, "two and more", 12);
	end_file();

	begin_file("frame", "torn");
	put(0, false_header, sizeof(false_header));
	put(1, "a frame inside the torn one", 27);
	put(7, "another one that completes it", 29);
	end_file();

	begin_file("frame", "rubbish");
	put(0, "PFPFGPPFG1PFG1PFG1PFG1", 22);
	put(0, empty, sizeof(empty));
	put(21, "a frame", 7);
	put(0, "PFG", 3);
	end_file();

	begin_file("frame", "waits");
	put(0, largest, sizeof(largest));
	put(1, "a frame", 7);
	end_file();
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
		return 2;
	}
	if (chdir(argv[1]) < 0) {
		perror(argv[1]);
		return 1;
	}
	make_session_seeds();
	make_frame_seeds();
	return 0;
}
