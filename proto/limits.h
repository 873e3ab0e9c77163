/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * What both ends of the guest channel must agree on beyond the messages (PROTOCOL.md, "Limits"):
 * the agent keeps to it, the host refuses what does not.
 */

#define PF_SESSION_PROTOCOL         1u           /* newest version of the protocol */
#define PF_SESSION_MAX_RAM_RANGES   64           /* in the agent's hello */
#define PF_SESSION_MAX_MODULES      65536        /* module ids are below */
#define PF_SESSION_MAX_MODULE_PAGES (1ull << 28) /* a file of 1 TiB */
#define PF_SESSION_MAX_BUILD_ID     64           /* bytes */
#define PF_SESSION_MAX_NAME         255          /* bytes of any text; a longer one is cut */

#define PF_GFN_BITS 40 /* no CPU forms more than 52 bits of guest-physical address */
#define PF_GFN_END  (1ull << PF_GFN_BITS)
