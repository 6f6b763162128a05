libmirror_la_SOURCES += \
	mirror/verify/verify.c \
	mirror/verify/verify.h
