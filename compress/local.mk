# Compression of what is written: what the worker and the filter of a destination agree on.
noinst_LTLIBRARIES += libcompress.la
libcompress_la_SOURCES = \
	compress/compressor.c \
	compress/compressor.h \
	compress/level.c \
	compress/level.h \
	compress/pack.c \
	compress/pack.h
libcompress_la_CFLAGS = $(AM_CFLAGS) $(ZSTD_CFLAGS)
libcompress_la_LIBADD = $(ZSTD_LIBS)
