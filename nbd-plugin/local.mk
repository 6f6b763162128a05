# One folder a filter or plugin.  It exports only what filter.map or plugin.map says.
EXTRA_DIST += nbd-plugin/filter.map nbd-plugin/plugin.map

# What the filters share.
noinst_LTLIBRARIES += libnbdplugin.la
libnbdplugin_la_SOURCES = \
	nbd-plugin/own-thread.c \
	nbd-plugin/own-thread.h \
	nbd-plugin/standing-record.c \
	nbd-plugin/standing-record.h

include nbd-plugin/digest/local.mk
include nbd-plugin/image/local.mk
include nbd-plugin/mirror/local.mk
include nbd-plugin/receive/local.mk

# libtool's .la file is of no use beside something that nbdkit loads.  Without it, libtool removes
# nothing at uninstall, so we do.
install-data-hook:
	for file in $(filter_LTLIBRARIES); do rm -f "$(DESTDIR)$(filterdir)/$${file##*/}"; done
	for file in $(plugin_LTLIBRARIES); do rm -f "$(DESTDIR)$(plugindir)/$${file##*/}"; done
uninstall-hook:
	for file in $(filter_LTLIBRARIES:.la=.so); do \
	  rm -f "$(DESTDIR)$(filterdir)/$${file##*/}"; done
	for file in $(plugin_LTLIBRARIES:.la=.so); do \
	  rm -f "$(DESTDIR)$(plugindir)/$${file##*/}"; done
