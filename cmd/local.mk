bin_PROGRAMS += nbdmirror
nbdmirror_SOURCES = \
	cmd/cmd.h \
	cmd/main.c \
	cmd/options.h cmd/options.c \
	cmd/place.c \
	cmd/units.h cmd/units.c \
	cmd/progress.h cmd/progress.c \
	cmd/forecast.h cmd/forecast.c \
	cmd/serve.c \
	cmd/mirror.c \
	cmd/copy.c \
	cmd/verify.c \
	cmd/worker.h cmd/worker.c \
	cmd/receive.c \
	cmd/receive-disk.h cmd/receive-disk.c \
	cmd/receive-server.h cmd/receive-server.c cmd/receive-launch.c cmd/receive-dir.c \
	cmd/run.h cmd/run.c \
	cmd/nbdkit-args.h cmd/nbdkit-args.c \
	cmd/nbdkit-run.h cmd/nbdkit-run.c \
	cmd/server-paths.h cmd/server-paths.c \
	cmd/tidy.h cmd/tidy.c \
	cmd/job.h cmd/job.c \
	cmd/spawn.h cmd/spawn.c \
	cmd/hooks.h cmd/hooks.c \
	cmd/migrate.h cmd/migrate.c cmd/migrate-qmp.c cmd/migrate-check.c \
	cmd/migrate-disks.c cmd/migrate-steps.c cmd/migrate-back.c cmd/migrate-plan.c \
	cmd/migrate-guard.c cmd/migrate-log.c \
	cmd/status.c \
	cmd/set.c \
	cmd/simple.c \
	cmd/complete.c \
	cmd/evacuate.c \
	cmd/evacuate-server.h cmd/evacuate-server.c \
	cmd/rollback.c
nbdmirror_CPPFLAGS = $(AM_CPPFLAGS) \
	-DFILTERDIR='"$(filterdir)"'
nbdmirror_CFLAGS = $(AM_CFLAGS) $(JANSSON_CFLAGS) $(LIBNBD_CFLAGS)
nbdmirror_LDADD = libmirror.la libcontrol.la libdirtybitmap.la \
	$(JANSSON_LIBS) $(LIBNBD_LIBS)

bashcompletiondir = $(datadir)/bash-completion/completions
dist_bashcompletion_DATA = completions/bash/nbdmirror
