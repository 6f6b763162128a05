# The destination's side, for `nbdmirror receive`.
filter_LTLIBRARIES += nbd-plugin/nbdkit-mirror-receive-filter.la
nbd_plugin_nbdkit_mirror_receive_filter_la_SOURCES = \
	nbd-plugin/receive/admission.c \
	nbd-plugin/receive/admission.h \
	nbd-plugin/receive/config.c \
	nbd-plugin/receive/exports.c \
	nbd-plugin/receive/filter.c \
	nbd-plugin/receive/filter.h \
	nbd-plugin/receive/hand-over.c \
	nbd-plugin/receive/hand-over.h \
	nbd-plugin/receive/orphan.c \
	nbd-plugin/receive/orphan.h \
	nbd-plugin/receive/packed.c \
	nbd-plugin/receive/packed.h \
	nbd-plugin/receive/standing.c \
	nbd-plugin/receive/standing.h
nbd_plugin_nbdkit_mirror_receive_filter_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)
nbd_plugin_nbdkit_mirror_receive_filter_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-Wl,--version-script=$(srcdir)/nbd-plugin/filter.map
receive_filter_libraries = libnbdplugin.la libcompress.la libbase.la
nbd_plugin_nbdkit_mirror_receive_filter_la_LIBADD = $(receive_filter_libraries)
nbd_plugin_nbdkit_mirror_receive_filter_la_DEPENDENCIES = $(receive_filter_libraries) \
	$(srcdir)/nbd-plugin/filter.map
