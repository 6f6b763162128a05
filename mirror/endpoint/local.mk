libmirror_la_SOURCES += \
	mirror/endpoint/blocking.c \
	mirror/endpoint/blocking.h \
	mirror/endpoint/buffers.c \
	mirror/endpoint/buffers.h \
	mirror/endpoint/command.c \
	mirror/endpoint/command.h \
	mirror/endpoint/endpoint.c \
	mirror/endpoint/endpoint.h \
	mirror/endpoint/file-cache.c \
	mirror/endpoint/file-open.c \
	mirror/endpoint/file.c \
	mirror/endpoint/file.h \
	mirror/endpoint/internal.h \
	mirror/endpoint/nbd-connect.c \
	mirror/endpoint/nbd-export.c \
	mirror/endpoint/nbd-session.c \
	mirror/endpoint/nbd-tls.c \
	mirror/endpoint/nbd.c \
	mirror/endpoint/nbd.h \
	mirror/endpoint/same-place.c \
	mirror/endpoint/same-place.h \
	mirror/endpoint/seal.c \
	mirror/endpoint/seal.h \
	mirror/endpoint/ssh.c \
	mirror/endpoint/ssh.h \
	mirror/endpoint/uri.c \
	mirror/endpoint/uri.h
