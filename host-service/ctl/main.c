/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "host-service/ctl/ctl.h"

int main(int argc, char **argv)
{
	return pf_ctl_run(argc, argv, stdout, stderr);
}
