filter_LTLIBRARIES += nbd-plugin/nbdkit-mirror-filter.la
nbd_plugin_nbdkit_mirror_filter_la_SOURCES = \
	nbd-plugin/mirror/attachment.c \
	nbd-plugin/mirror/attachment.h \
	nbd-plugin/mirror/bypass.c \
	nbd-plugin/mirror/bypass.h \
	nbd-plugin/mirror/checkpoints.c \
	nbd-plugin/mirror/checkpoints-add.c \
	nbd-plugin/mirror/checkpoints.h \
	nbd-plugin/mirror/commands-worker.c \
	nbd-plugin/mirror/commands.c \
	nbd-plugin/mirror/commands.h \
	nbd-plugin/mirror/events.c \
	nbd-plugin/mirror/events.h \
	nbd-plugin/mirror/fence.c \
	nbd-plugin/mirror/fence.h \
	nbd-plugin/mirror/filter.c \
	nbd-plugin/mirror/filter.h \
	nbd-plugin/mirror/gate.c \
	nbd-plugin/mirror/gate.h \
	nbd-plugin/mirror/handed-over.c \
	nbd-plugin/mirror/handed-over.h \
	nbd-plugin/mirror/measurement.c \
	nbd-plugin/mirror/measurement.h \
	nbd-plugin/mirror/pace.c \
	nbd-plugin/mirror/pace.h \
	nbd-plugin/mirror/participant-end.c \
	nbd-plugin/mirror/participant-internal.h \
	nbd-plugin/mirror/participant.c \
	nbd-plugin/mirror/participant.h \
	nbd-plugin/mirror/persist-disk.c \
	nbd-plugin/mirror/persist-disk.h \
	nbd-plugin/mirror/persist.c \
	nbd-plugin/mirror/persist.h \
	nbd-plugin/mirror/process.c \
	nbd-plugin/mirror/process.h \
	nbd-plugin/mirror/receiving.c \
	nbd-plugin/mirror/receiving.h \
	nbd-plugin/mirror/relay.c \
	nbd-plugin/mirror/relay.h \
	nbd-plugin/mirror/shutdown.c \
	nbd-plugin/mirror/shutdown.h \
	nbd-plugin/mirror/status.c \
	nbd-plugin/mirror/status.h \
	nbd-plugin/mirror/thread.c \
	nbd-plugin/mirror/thread.h \
	nbd-plugin/mirror/tracker.c \
	nbd-plugin/mirror/tracker.h \
	nbd-plugin/mirror/worker-progress.c
nbd_plugin_nbdkit_mirror_filter_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)
nbd_plugin_nbdkit_mirror_filter_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-Wl,--version-script=$(srcdir)/nbd-plugin/filter.map
mirror_filter_libraries = libnbdplugin.la libdirtybitmap.la libcontrol.la libbase.la
nbd_plugin_nbdkit_mirror_filter_la_LIBADD = $(mirror_filter_libraries) $(JANSSON_LIBS)
nbd_plugin_nbdkit_mirror_filter_la_DEPENDENCIES = $(mirror_filter_libraries) \
	$(srcdir)/nbd-plugin/filter.map
