nbdmirror_SOURCES += \
	cmd/adopt/adopt-options.c \
	cmd/adopt/adopt.c \
	cmd/adopt/adopt.h \
	cmd/adopt/give-back.c \
	cmd/adopt/guest-disk.c \
	cmd/adopt/guest-disk.h \
	cmd/adopt/monitor.c \
	cmd/adopt/monitor.h \
	cmd/adopt/names.c \
	cmd/adopt/names.h \
	cmd/adopt/nodes.c \
	cmd/adopt/nodes.h \
	cmd/adopt/pivot.c \
	cmd/adopt/pivot.h \
	cmd/adopt/received.c \
	cmd/adopt/received.h \
	cmd/adopt/record.c \
	cmd/adopt/record.h \
	cmd/adopt/revive.c \
	cmd/adopt/revive.h \
	cmd/adopt/same-image.c \
	cmd/adopt/same-image.h \
	cmd/adopt/served.c \
	cmd/adopt/served.h
