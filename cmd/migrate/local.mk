nbdmirror_SOURCES += \
	cmd/migrate/back.c \
	cmd/migrate/check.c \
	cmd/migrate/disks.c \
	cmd/migrate/guard.c \
	cmd/migrate/journal.c \
	cmd/migrate/migrate.c \
	cmd/migrate/migrate.h \
	cmd/migrate/plan.c \
	cmd/migrate/machine.c \
	cmd/migrate/steps.c
