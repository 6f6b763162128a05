libmirror_la_SOURCES += \
	mirror/engine/bell.c \
	mirror/engine/bell.h \
	mirror/engine/catchup.c \
	mirror/engine/catchup.h \
	mirror/engine/copier.c \
	mirror/engine/copier.h \
	mirror/engine/engine.c \
	mirror/engine/engine.h \
	mirror/engine/flush-turns.c \
	mirror/engine/identity.c \
	mirror/engine/identity.h \
	mirror/engine/internal.h \
	mirror/engine/pass.c \
	mirror/engine/pass.h \
	mirror/engine/rate.c \
	mirror/engine/rate.h \
	mirror/engine/session.c \
	mirror/engine/session.h \
	mirror/engine/slot-data.c \
	mirror/engine/supervisor.c \
	mirror/engine/supervisor.h \
	mirror/engine/urgent-queue.c \
	mirror/engine/urgent-queue.h \
	mirror/engine/urgent.c \
	mirror/engine/window.c \
	mirror/engine/window.h
