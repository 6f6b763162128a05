# Digests of a disk's blocks: what the filter that serves them and its clients agree on.
noinst_LTLIBRARIES += libdigest.la
libdigest_la_SOURCES = \
	digest/export-name.c \
	digest/export-name.h \
	digest/hash.c \
	digest/hash.h \
	digest/list-format.h \
	digest/list-read.c \
	digest/list.c \
	digest/list.h \
	digest/whole.c \
	digest/whole.h
libdigest_la_CFLAGS = $(AM_CFLAGS) $(XXHASH_CFLAGS)
libdigest_la_LIBADD = libbase.la $(XXHASH_LIBS)
