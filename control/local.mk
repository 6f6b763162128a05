noinst_LTLIBRARIES += libcontrol.la
libcontrol_la_SOURCES = \
	control/frame.h control/frame.c \
	control/wire.h control/wire.c \
	control/listen.h control/listen.c \
	control/peer.h control/peer.c control/answer.c \
	control/server.h control/server.c \
	control/client.h control/client.c \
	control/link.h control/link.c \
	control/settings.h control/settings.c \
	control/name.h control/name.c \
	control/decision.h control/decision.c \
	control/rollback-token.h control/rollback-token.c \
	control/layers-export.h \
	control/lend-export.h \
	control/receive-exports.h control/take-over.h

libcontrol_la_LIBADD = $(JANSSON_LIBS)
