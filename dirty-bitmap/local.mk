noinst_LTLIBRARIES += libdirtybitmap.la
libdirtybitmap_la_SOURCES = \
	dirty-bitmap/region.h dirty-bitmap/region.c \
	dirty-bitmap/bitmap.h dirty-bitmap/bitmap.c \
	dirty-bitmap/claims.h dirty-bitmap/claims.c \
	dirty-bitmap/samples.h dirty-bitmap/samples.c \
	dirty-bitmap/urgent.h dirty-bitmap/urgent.c \
	dirty-bitmap/state/begin.c \
	dirty-bitmap/state/changed.c \
	dirty-bitmap/state/check.h dirty-bitmap/state/check.c \
	dirty-bitmap/state/file.h dirty-bitmap/state/file.c \
	dirty-bitmap/state/format.h dirty-bitmap/state/format.c \
	dirty-bitmap/state/guest.c \
	dirty-bitmap/state/internal.h \
	dirty-bitmap/state/lost-pages.h dirty-bitmap/state/lost-pages.c \
	dirty-bitmap/state/note.c \
	dirty-bitmap/state/recordings.h dirty-bitmap/state/recordings.c \
	dirty-bitmap/state/recover.c \
	dirty-bitmap/state/state.h dirty-bitmap/state/state.c \
	dirty-bitmap/state/cool.c \
	dirty-bitmap/state/work.c \
	dirty-bitmap/watch.h dirty-bitmap/watch.c
