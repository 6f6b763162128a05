# Digests of a disk's blocks, as an export beside the disk.
filter_LTLIBRARIES += nbd-plugin/nbdkit-digest-filter.la
nbd_plugin_nbdkit_digest_filter_la_SOURCES = \
	nbd-plugin/digest/extents.c \
	nbd-plugin/digest/extents.h \
	nbd-plugin/digest/filter.c
nbd_plugin_nbdkit_digest_filter_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)
nbd_plugin_nbdkit_digest_filter_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-Wl,--version-script=$(srcdir)/nbd-plugin/filter.map
nbd_plugin_nbdkit_digest_filter_la_LIBADD = libdigest.la
nbd_plugin_nbdkit_digest_filter_la_DEPENDENCIES = libdigest.la $(srcdir)/nbd-plugin/filter.map
