nbdmirror_SOURCES += \
	cmd/backup/backup.c \
	cmd/backup/backup.h \
	cmd/backup/compress.c \
	cmd/backup/digests.c \
	cmd/backup/disk.c \
	cmd/backup/facts.c \
	cmd/backup/folder.c \
	cmd/backup/forecast.c \
	cmd/backup/instant.c \
	cmd/backup/metrics.c \
	cmd/backup/options.c \
	cmd/backup/seal.c \
	cmd/backup/serve.c \
	cmd/backup/store-far.c \
	cmd/backup/store-far.h \
	cmd/backup/store.c \
	cmd/backup/store.h \
	cmd/backup/tell.c \
	cmd/backup/thaw.c \
	cmd/backup/watch.c \
	cmd/backup/workers.c
