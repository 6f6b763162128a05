# Repositories of backups.
noinst_LTLIBRARIES += libbackup.la
libbackup_la_SOURCES = \
	backup/begun.c \
	backup/begun.h \
	backup/chain.c \
	backup/chain.h \
	backup/digests.c \
	backup/digests.h \
	backup/drop-plan.c \
	backup/drop-plan.h \
	backup/lock.c \
	backup/lock.h \
	backup/manifest.c \
	backup/manifest.h \
	backup/names.c \
	backup/names.h \
	backup/plan.c \
	backup/plan.h \
	backup/qcow2-digests.c \
	backup/qcow2-digests.h \
	backup/qcow2-head.c \
	backup/qcow2-head.h \
	backup/qcow2-layout.h \
	backup/qcow2-new.c \
	backup/qcow2-new.h \
	backup/repository.c \
	backup/repository.h \
	backup/retention.c \
	backup/retention.h
libbackup_la_LIBADD = libdigest.la libbase.la $(JANSSON_LIBS)
