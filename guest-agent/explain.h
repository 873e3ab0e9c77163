/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Logs why the agent cannot work, and what to do. */

/* The guest cannot be read. */
void pf_explain_guest(int error);

/* The port cannot be used. */
void pf_explain_port(const char *port, int error);
