bin_PROGRAMS += nbdmirror
nbdmirror_SOURCES = \
	cmd/cmd.h \
	cmd/control-query.c \
	cmd/control-query.h \
	cmd/copy.c \
	cmd/hooks.c \
	cmd/hooks.h \
	cmd/main.c \
	cmd/mirror.c \
	cmd/options.c \
	cmd/options.h \
	cmd/pause.c \
	cmd/place.c \
	cmd/rollback.c \
	cmd/set.c \
	cmd/show-forecast.c \
	cmd/show-forecast.h \
	cmd/show-progress.c \
	cmd/show-progress.h \
	cmd/status.c \
	cmd/units.c \
	cmd/units.h \
	cmd/verify.c \
	cmd/worker.c \
	cmd/worker.h
nbdmirror_CPPFLAGS = $(AM_CPPFLAGS) \
	-DFILTERDIR='"$(filterdir)"'

nbdmirror_LDADD = libmirror.la libcontrol.la libdirtybitmap.la libbase.la \
	$(JANSSON_LIBS) $(LIBNBD_LIBS)

include cmd/serve/local.mk
include cmd/receive/local.mk
include cmd/migrate/local.mk
include cmd/evacuate/local.mk
include cmd/complete/local.mk

bashcompletiondir = $(datadir)/bash-completion/completions
dist_bashcompletion_DATA = completions/bash/nbdmirror
