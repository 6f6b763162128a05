libmirror_la_SOURCES += \
	mirror/verify/by-bytes.c \
	mirror/verify/by-digests.c \
	mirror/verify/image-digest.c \
	mirror/verify/image-digest.h \
	mirror/verify/image-record.c \
	mirror/verify/verify.c \
	mirror/verify/verify.h \
	mirror/verify/walk.c \
	mirror/verify/walk.h
