filter_LTLIBRARIES += nbd-plugin/nbdkit-mirror-filter.la
nbd_plugin_nbdkit_mirror_filter_la_SOURCES = \
	nbd-plugin/filter.h nbd-plugin/mirror-filter.c \
	nbd-plugin/tracker.h nbd-plugin/tracker.c \
	nbd-plugin/gate.h nbd-plugin/gate.c \
	nbd-plugin/pace.h nbd-plugin/pace.c \
	nbd-plugin/fence.h nbd-plugin/fence.c \
	nbd-plugin/process.h nbd-plugin/process.c \
	nbd-plugin/job.h nbd-plugin/job.c nbd-plugin/progress.c \
	nbd-plugin/handoff.h nbd-plugin/handoff.c \
	nbd-plugin/measure.h nbd-plugin/measure.c \
	nbd-plugin/commands.h nbd-plugin/commands.c nbd-plugin/commands-worker.c \
	nbd-plugin/status.c nbd-plugin/events.c \
	nbd-plugin/thread.h nbd-plugin/thread.c
nbd_plugin_nbdkit_mirror_filter_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS) $(JANSSON_CFLAGS)
nbd_plugin_nbdkit_mirror_filter_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-Wl,--version-script=$(srcdir)/nbd-plugin/filter.map
nbd_plugin_nbdkit_mirror_filter_la_LIBADD = libdirtybitmap.la libcontrol.la $(JANSSON_LIBS)
nbd_plugin_nbdkit_mirror_filter_la_DEPENDENCIES = libdirtybitmap.la libcontrol.la $(srcdir)/nbd-plugin/filter.map
EXTRA_DIST += nbd-plugin/filter.map

# The destination's side, for `nbdmirror receive`.
filter_LTLIBRARIES += nbd-plugin/nbdkit-mirror-receive-filter.la
nbd_plugin_nbdkit_mirror_receive_filter_la_SOURCES = \
	nbd-plugin/receive-filter.c \
	nbd-plugin/admission.h nbd-plugin/admission.c \
	nbd-plugin/orphan.h nbd-plugin/orphan.c
nbd_plugin_nbdkit_mirror_receive_filter_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)
nbd_plugin_nbdkit_mirror_receive_filter_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-Wl,--version-script=$(srcdir)/nbd-plugin/filter.map
nbd_plugin_nbdkit_mirror_receive_filter_la_DEPENDENCIES = $(srcdir)/nbd-plugin/filter.map

# libtool's .la file is of no use beside something that nbdkit loads; without it libtool removes nothing.
install-data-hook:
	for file in $(filter_LTLIBRARIES); do rm -f "$(DESTDIR)$(filterdir)/$${file##*/}"; done
uninstall-hook:
	for file in $(filter_LTLIBRARIES:.la=.so); do rm -f "$(DESTDIR)$(filterdir)/$${file##*/}"; done
