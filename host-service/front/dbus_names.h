/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once
/* Names on the bus that both ends use; org.pagefusion1.xml describes what they mean. */

#define PF_DBUS_NAME "org.pagefusion1"
#define PF_DBUS_PATH "/org/pagefusion1"

#define PF_DBUS_ERROR_NO_SUCH_VM       "org.pagefusion1.Error.NoSuchVM"
#define PF_DBUS_ERROR_VM_NOT_SHUT_OFF  "org.pagefusion1.Error.VMNotShutOff"
#define PF_DBUS_ERROR_REFUSED          "org.pagefusion1.Error.Refused"
#define PF_DBUS_ERROR_INVALID_ARGUMENT "org.pagefusion1.Error.InvalidArgument"
#define PF_DBUS_ERROR_NO_LIBVIRT       "org.pagefusion1.Error.NoLibvirt"
#define PF_DBUS_ERROR_FAILED           "org.pagefusion1.Error.Failed"
