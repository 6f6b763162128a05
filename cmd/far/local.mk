nbdmirror_SOURCES += \
	cmd/far/agent.c \
	cmd/far/far.c \
	cmd/far/far.h \
	cmd/far/line.c \
	cmd/far/line.h \
	cmd/far/pass-on.c \
	cmd/far/run-there.c \
	cmd/far/run-there.h
