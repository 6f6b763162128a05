# Disk images in qemu-nbd's formats, with a qemu-nbd that may die.
plugin_LTLIBRARIES += nbd-plugin/nbdkit-image-plugin.la
nbd_plugin_nbdkit_image_plugin_la_SOURCES = \
	nbd-plugin/image/check.c \
	nbd-plugin/image/check.h \
	nbd-plugin/image/extents.c \
	nbd-plugin/image/extents.h \
	nbd-plugin/image/image.c \
	nbd-plugin/image/image.h \
	nbd-plugin/image/internal.h \
	nbd-plugin/image/lending.c \
	nbd-plugin/image/log.c \
	nbd-plugin/image/log.h \
	nbd-plugin/image/plugin.c \
	nbd-plugin/image/recovery.c \
	nbd-plugin/image/requests.c \
	nbd-plugin/image/requests.h \
	nbd-plugin/image/server.c \
	nbd-plugin/image/server.h
nbd_plugin_nbdkit_image_plugin_la_CFLAGS = $(AM_CFLAGS) $(NBDKIT_CFLAGS)
nbd_plugin_nbdkit_image_plugin_la_LDFLAGS = $(AM_LDFLAGS) -module -avoid-version -shared \
	-Wl,--version-script=$(srcdir)/nbd-plugin/plugin.map
nbd_plugin_nbdkit_image_plugin_la_LIBADD = libbase.la $(LIBNBD_LIBS)
nbd_plugin_nbdkit_image_plugin_la_DEPENDENCIES = libbase.la $(srcdir)/nbd-plugin/plugin.map
