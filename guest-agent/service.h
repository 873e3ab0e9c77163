/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/*
 * How a person starts the agent and finds what it has said: that depends on what starts services here. The texts are
 * static.
 */

const char *pf_service_start(void);
const char *pf_service_restart(void);
const char *pf_service_log(void);
