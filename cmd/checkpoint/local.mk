nbdmirror_SOURCES += \
	cmd/checkpoint/add.c \
	cmd/checkpoint/checkpoint.c \
	cmd/checkpoint/checkpoint.h \
	cmd/checkpoint/dirty-map.c \
	cmd/checkpoint/offline.c \
	cmd/checkpoint/offline.h \
	cmd/checkpoint/verify.c
