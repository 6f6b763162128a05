noinst_LTLIBRARIES += libmirror.la
libmirror_la_SOURCES = \
	mirror/copier.c \
	mirror/copier.h \
	mirror/copy.c \
	mirror/copy.h \
	mirror/endpoint-command.c \
	mirror/endpoint-command.h \
	mirror/endpoint-file-open.c \
	mirror/endpoint-file.c \
	mirror/endpoint-file.h \
	mirror/endpoint-internal.h \
	mirror/endpoint-nbd-connect.c \
	mirror/endpoint-nbd-session.c \
	mirror/endpoint-nbd.c \
	mirror/endpoint-nbd.h \
	mirror/endpoint.c \
	mirror/endpoint.h \
	mirror/engine-flush.c \
	mirror/engine-internal.h \
	mirror/engine.c \
	mirror/engine.h \
	mirror/estimate.c \
	mirror/estimate.h \
	mirror/handoff.c \
	mirror/handoff.h \
	mirror/identity.c \
	mirror/identity.h \
	mirror/job-attach.c \
	mirror/job-final.c \
	mirror/job-gate.c \
	mirror/job-gate.h \
	mirror/job-internal.h \
	mirror/job-requests.c \
	mirror/job-status.c \
	mirror/job.c \
	mirror/job.h \
	mirror/pass.c \
	mirror/pass.h \
	mirror/rate.c \
	mirror/rate.h \
	mirror/same.c \
	mirror/same.h \
	mirror/seal.c \
	mirror/seal.h \
	mirror/session.c \
	mirror/session.h \
	mirror/slot.c \
	mirror/supervisor.c \
	mirror/supervisor.h \
	mirror/sync.c \
	mirror/sync.h \
	mirror/verify.c \
	mirror/verify.h \
	mirror/window.c \
	mirror/window.h
libmirror_la_CFLAGS = $(AM_CFLAGS) $(LIBNBD_CFLAGS) $(JANSSON_CFLAGS)
libmirror_la_LIBADD = $(LIBNBD_LIBS) $(LIBAIO_LIBS) $(JANSSON_LIBS)
