# The library of the worker.  Each folder lists its own files.
noinst_LTLIBRARIES += libmirror.la
libmirror_la_SOURCES =

libmirror_la_LIBADD = libdigest.la libcompress.la libbudget.la libbase.la \
	$(LIBNBD_LIBS) $(LIBXML_LIBS) $(LIBAIO_LIBS) $(JANSSON_LIBS)

include mirror/endpoint/local.mk
include mirror/engine/local.mk
include mirror/job/local.mk
include mirror/verify/local.mk
include mirror/handoff/local.mk
