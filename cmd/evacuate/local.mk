nbdmirror_SOURCES += \
	cmd/evacuate/evacuate.c \
	cmd/evacuate/evacuate.h \
	cmd/evacuate/new-disk.c \
	cmd/evacuate/options.c \
	cmd/evacuate/server.c \
	cmd/evacuate/server.h \
	cmd/evacuate/worker.c
