nbdmirror_SOURCES += \
	cmd/evacuate/evacuate.c \
	cmd/evacuate/server.c \
	cmd/evacuate/server.h
