nbdmirror_SOURCES += \
	cmd/receive/dir.c \
	cmd/receive/disk.c \
	cmd/receive/disk.h \
	cmd/receive/launch.c \
	cmd/receive/place.c \
	cmd/receive/receive.c \
	cmd/receive/server.c \
	cmd/receive/server.h \
	cmd/receive/tracked.c
