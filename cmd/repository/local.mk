nbdmirror_SOURCES += \
	cmd/repository/boot.c \
	cmd/repository/boot.h \
	cmd/repository/compare.c \
	cmd/repository/compare.h \
	cmd/repository/drop-check.c \
	cmd/repository/drop-check.h \
	cmd/repository/drop-digests.c \
	cmd/repository/drop-digests.h \
	cmd/repository/drop-internal.h \
	cmd/repository/drop-lines.c \
	cmd/repository/drop-remove.c \
	cmd/repository/drop-steps.c \
	cmd/repository/drop-unused.c \
	cmd/repository/drop-unused.h \
	cmd/repository/drop.c \
	cmd/repository/far-export.c \
	cmd/repository/far-export.h \
	cmd/repository/list.c \
	cmd/repository/opened.c \
	cmd/repository/prune.c \
	cmd/repository/repository.h \
	cmd/repository/restore.c \
	cmd/repository/rewrite.c \
	cmd/repository/rewrite.h \
	cmd/repository/serve-backup.c \
	cmd/repository/verify.c
