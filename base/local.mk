# What everything else stands on.  It uses libc only.
noinst_LTLIBRARIES += libbase.la
libbase_la_SOURCES = \
	base/child.c \
	base/child.h \
	base/child-guard.c \
	base/child-guard.h \
	base/clock.c \
	base/clock.h \
	base/durable.c \
	base/durable.h \
	base/fd.c \
	base/fd.h \
	base/pid-file.c \
	base/pid-file.h \
	base/private-dir.c \
	base/private-dir.h \
	base/private-socket.c \
	base/private-socket.h \
	base/qemu-lock.c \
	base/qemu-lock.h \
	base/range-lock.h \
	base/stop-signals.c \
	base/stop-signals.h \
	base/text.c \
	base/text.h \
	base/tracked-mark.c \
	base/tracked-mark.h \
	base/uuid.c \
	base/uuid.h \
	base/zero.h
