noinst_LTLIBRARIES += libmirror.la
libmirror_la_SOURCES = \
	mirror/endpoint-command.c \
	mirror/endpoint-command.h \
	mirror/endpoint-file.c \
	mirror/endpoint-internal.h \
	mirror/endpoint-nbd.c \
	mirror/endpoint.c \
	mirror/endpoint.h
libmirror_la_CFLAGS = $(AM_CFLAGS) $(LIBNBD_CFLAGS)
libmirror_la_LIBADD = $(LIBNBD_LIBS) $(LIBAIO_LIBS)
