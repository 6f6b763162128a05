noinst_LTLIBRARIES += libmirror.la
libmirror_la_SOURCES = \
	mirror/endpoint-command.c \
	mirror/endpoint-command.h \
	mirror/endpoint-file.c \
	mirror/endpoint-internal.h \
	mirror/endpoint-nbd.c \
	mirror/endpoint.c \
	mirror/endpoint.h \
	mirror/handoff.c \
	mirror/handoff.h
libmirror_la_CFLAGS = $(AM_CFLAGS) $(LIBNBD_CFLAGS) $(JANSSON_CFLAGS)
libmirror_la_LIBADD = $(LIBNBD_LIBS) $(LIBAIO_LIBS) $(JANSSON_LIBS)
